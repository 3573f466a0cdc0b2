"""Every code block of README and docs runs, every example too, and the tree in the README is the tree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .blocks import PAGES, ROOT, blocks, faults, is_slow, run

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SRC = ROOT / "src" / "lorakit"


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def runs(page: Path):
    return pytest.param(page, marks=pytest.mark.slow if is_slow(page.read_text("utf-8")) else (), id=named(page))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_each_block_is_run_or_says_why_not(page: Path):
    assert faults(page.read_text("utf-8")) == []


@pytest.mark.parametrize("page", [runs(page) for page in PAGES])
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run(page, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=named)
def test_example_runs(example: Path, tmp_path: Path):
    assert len(example.read_text("utf-8").splitlines()) <= 60
    done = subprocess.run([sys.executable, "-W", "error", str(example)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def tree(text: str) -> dict[str, str]:
    """Return path -> comment of an indented tree; a folder ends in `/`, a comment is after two spaces or more."""
    found, above = {}, []
    for line in text.splitlines():
        match = re.match(r"( *)(\S+)(?: {2,}(.*))?$", line.rstrip())
        assert match, f"no line of a tree: {line!r}"
        depth = len(match[1]) // 2
        above = [*above[:depth], match[2].rstrip("/")]
        found["/".join(above)] = (match[3] or "").strip()
    return found


def test_tree_of_the_readme_is_the_tree():
    page = (ROOT / "README.md").read_text("utf-8")
    after = re.search(r"^#+ Layout$", page, re.MULTILINE)
    assert after, "the README has no heading 'Layout'"
    shown = tree(next(block.text for block in blocks(page[after.end() :]) if block.language == "text"))
    real = {p.relative_to(ROOT).as_posix() for p in SRC.rglob("*.py") if p.name != "__init__.py"} | {"src/lorakit/__init__.py"}
    files = {path: comment for path, comment in shown.items() if path.endswith(".py")}
    assert sorted(files) == sorted(real)
    assert [path for path, comment in files.items() if not comment] == []


GOOD = """
```python
x = 1
```
```console
$ echo 'y = 2' \\
  > later.py
any output
```
```python
from later import y
assert x < y
```
<!-- exit code: 3 -->
```bash
$ exit 3
```
<!-- not run: needs a GPU -->
```python
1 / 0
```
"""


def test_a_page_runs_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    page = tmp_path / "page.md"
    page.write_text(GOOD)
    assert faults(GOOD) == [] and is_slow(GOOD)
    run(page, tmp_path)


@pytest.mark.parametrize(
    "bad", ["```python\nz\n```\n", "```console\n$ false\n```\n", "<!-- exit code: 2 -->\n```sh\n$ true\n```\n"]
)
def test_a_failing_page_is_seen(tmp_path: Path, bad: str):
    page = tmp_path / "page.md"
    page.write_text(bad)
    with pytest.raises((NameError, RuntimeError)):
        run(page, tmp_path)


@pytest.mark.parametrize("unsaid", ["<!-- not run -->\n```python\nx\n```\n", "```bash\nmake demo\n```\n"])
def test_a_block_that_only_looks_checked_is_seen(unsaid: str):
    assert len(faults(unsaid)) == 1
