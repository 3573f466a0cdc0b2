"""The README runs, every example too, and the tree in the README is the tree. (A file of its own:
files run side by side.)
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .blocks import ROOT, blocks, run

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README, SRC = ROOT / "README.md", ROOT / "src" / "lorakit"


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.slow
def test_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run(README, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=named)
def test_example_runs(example: Path, tmp_path: Path):
    assert len(example.read_text("utf-8").splitlines()) <= 60
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def tree(text: str) -> dict[str, str]:
    """Return path -> comment of an indented tree; a folder ends in `/`, a comment is after two
    spaces or more.
    """
    found, above = {}, []
    for line in text.splitlines():
        match = re.match(r"( *)(\S+)(?: {2,}(.*))?$", line.rstrip())
        assert match, f"no line of a tree: {line!r}"
        depth = len(match[1]) // 2
        above = [*above[:depth], match[2].rstrip("/")]
        found["/".join(above)] = (match[3] or "").strip()
    return found


def test_tree_of_the_readme_is_the_tree():
    page = README.read_text("utf-8")
    after = re.search(r"^#+ Layout$", page, re.MULTILINE)
    assert after, "the README has no heading 'Layout'"
    shown = tree(
        next(block.text for block in blocks(page[after.end() :]) if block.language == "text")
    )
    real = {
        p.relative_to(ROOT).as_posix() for p in SRC.rglob("*.py") if p.name != "__init__.py"
    } | {"src/lorakit/__init__.py"}
    files = {path: comment for path, comment in shown.items() if path.endswith(".py")}
    assert sorted(files) == sorted(real)
    assert [path for path, comment in files.items() if not comment] == []
