"""Every notebook of the tutorial runs from nothing, in little time and without a warning; it is
stored without outputs.
"""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .blocks import ROOT

FOLDER = ROOT / "docs" / "tutorial"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 150  # for one, on one busy core; a laptop takes a third of it

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def stored(text: str) -> str:
    spec = importlib.util.spec_from_file_location("tutorial_run", FOLDER / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.stored(text)


def cells(path: Path, kind: str) -> list[str]:
    return [
        "".join(cell["source"])
        for cell in json.loads(path.read_text("utf-8"))["cells"]
        if cell["cell_type"] == kind
    ]


def imported(code: str) -> set[str]:
    """Return the packages that code imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found |= {name.partition(".")[0] for name in names}
    return found


def executed(folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    own = {
        name: str(folder / name)
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    own |= {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    own |= {
        "TUTORIAL_STEPS": "2"
    }  # of each training in notebooks 3 and 5; `make tutorial` and `make docs` take all
    return subprocess.run(
        [
            sys.executable,
            str(FOLDER / "run.py"),
            "--output",
            str(folder / "out"),
            "--limit",
            str(SECONDS),
            *map(str, paths),
        ],
        cwd=folder,
        env={**os.environ, **own},
        text=True,
        capture_output=True,
    )


@notebooks
def test_it_is_stored_without_outputs(path: Path):
    text = path.read_text("utf-8")
    assert text == stored(text), "python docs/tutorial/run.py --strip"


@notebooks
def test_it_is_for_reading(path: Path):
    told, code = cells(path, "markdown"), cells(path, "code")
    assert told[0].startswith("# ") and len(told) >= len(code) / 2
    assert max(len(block.splitlines()) for block in code) <= 35, (
        "long code belongs into the library"
    )


@notebooks
def test_it_draws_by_the_library_alone(path: Path):
    assert (
        imported("\n".join(cells(path, "code")))
        & {"matplotlib", "seaborn", "plotly", "networkx", "PIL"}
        == set()
    )


@pytest.mark.slow
@notebooks
@pytest.mark.timeout(900)  # where others work on the same cores
def test_it_runs(path: Path, tmp_path: Path):
    done = executed(tmp_path, path)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = json.loads((tmp_path / "out" / path.name).read_text("utf-8"))
    drawn = [
        out
        for cell in ran["cells"]
        for out in cell.get("outputs", ())
        if "image/png" in out.get("data", ())
    ]
    assert drawn, "a notebook of this tutorial shows pictures"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "says"),
    [("1 / 0", "ZeroDivisionError"), ("import warnings\nwarnings.warn('old')", "old")],
)
def test_a_notebook_that_fails_or_warns_is_seen(code: str, says: str, tmp_path: Path):
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {},
        "source": [code],
        "outputs": [{}],
        "execution_count": 7,
    }
    path = tmp_path / "bad.ipynb"
    path.write_text(stored(json.dumps({"cells": [cell]})))
    done = executed(tmp_path, path)
    assert done.returncode == 1 and says in done.stderr, done.stdout + done.stderr
