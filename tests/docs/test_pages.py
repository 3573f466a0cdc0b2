"""Every code block of the docs runs, what looks checked is checked, and the table of settings is
that of Spec.
"""

from dataclasses import MISSING, Field, fields
from pathlib import Path

import pytest

from lorakit.spec import Spec

from .blocks import PAGES, ROOT, faults, is_slow, run


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def runs(page: Path):
    return pytest.param(
        page, marks=pytest.mark.slow if is_slow(page.read_text("utf-8")) else (), id=named(page)
    )


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_each_block_is_run_or_says_why_not(page: Path):
    assert faults(page.read_text("utf-8")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [runs(page) for page in PAGES if page.name != "README.md"]
)  # see test_readme.py
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_sites: None):
    monkeypatch.chdir(tmp_path)
    run(page, tmp_path)


def test_the_table_of_settings_is_that_of_spec():
    def value(f: Field) -> object:
        return f.default if f.default is not MISSING else f.default_factory()  # type: ignore[misc]

    rows = [f"| `{f.name}` | `{value(f)!r}` | {f.metadata['help']} |" for f in fields(Spec)]
    shown = (ROOT / "docs" / "adapters.md").read_text("utf-8").splitlines()
    assert [line for line in shown if line.startswith("| `")] == rows


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
    "bad",
    [
        "```python\nz\n```\n",
        "```console\n$ false\n```\n",
        "<!-- exit code: 2 -->\n```sh\n$ true\n```\n",
    ],
)
def test_a_failing_page_is_seen(tmp_path: Path, bad: str):
    page = tmp_path / "page.md"
    page.write_text(bad)
    with pytest.raises((NameError, RuntimeError)):
        run(page, tmp_path)


@pytest.mark.parametrize(
    "unsaid", ["<!-- not run -->\n```python\nx\n```\n", "```bash\nmake demo\n```\n"]
)
def test_a_block_that_only_looks_checked_is_seen(unsaid: str):
    assert len(faults(unsaid)) == 1
