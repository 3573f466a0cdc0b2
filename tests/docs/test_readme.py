"""The README and the examples run; the README names every room, and the list of files is up to
date.
"""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from .blocks import ROOT, run

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
    assert len(example.read_text("utf-8").splitlines()) <= 90
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 170


def test_every_room_is_in_the_readme() -> None:
    text = README.read_text("utf-8")
    rooms = {path.parent.name + "/" for path in SRC.glob("*/__init__.py")}
    files = {path.stem for path in SRC.glob("*.py") if not path.stem.startswith("__")}
    assert {name for name in rooms | files if f"`{name}`" not in text} == set()


@pytest.mark.slow
def test_files_are_listed_as_their_docstrings_say() -> None:
    layout = runpy.run_path(str(ROOT / "docs" / "book" / "layout.py"))
    written = layout["PAGE"].read_text("utf-8")
    assert layout["make_page"]() == written, "on purpose? then: make record"
