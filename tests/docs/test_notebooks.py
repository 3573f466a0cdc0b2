"""Every notebook of the tutorial runs from nothing, quickly and without a warning.

It is stored with the outputs of its code.
"""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .blocks import ROOT

FOLDER = ROOT / "docs" / "tutorial"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 150  # for a notebook on one busy core; a laptop needs a third of it
LARGEST = 1_500_000  # bytes of a notebook
PATHS = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|var|opt|mnt|private|Users)/|[A-Z]:\\Users")
DRAWING = {"matplotlib", "seaborn", "plotly", "networkx", "PIL"}

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def load_runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorial_run", FOLDER / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def sources(path: Path, kind: str) -> list[str]:
    cells = read(path)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def stored_outputs(path: Path) -> list[dict[str, Any]]:
    outputs = []
    for cell in read(path)["cells"]:
        outputs += cell.get("outputs", [])
    return outputs


def output_text(output: dict[str, Any]) -> str:
    """Return the text of an output: its stream, or its plain text."""
    lines = output.get("text") or output["data"].get("text/plain", [])
    return "".join(lines)


def expected_kinds(code: str) -> set[str]:
    """Return the kinds of output that code must have: text if it prints, a picture if it draws."""
    tree = ast.parse(code)
    kinds: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            kinds.add("text")
    last = tree.body[-1]
    if isinstance(last, ast.Expr) and "draw" in ast.unparse(last):
        kinds.add("picture")
    return kinds


def output_kinds(cell: dict[str, Any]) -> set[str]:
    kinds: set[str] = set()
    for output in cell["outputs"]:
        kinds.add("picture" if "image/png" in output.get("data", ()) else "text")
    return kinds


def imported_packages(code: str) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return {name.partition(".")[0] for name in names}


def run_notebook(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a notebook with few training steps; it is written to `folder / "out"`."""
    environment = {**os.environ, "TUTORIAL_STEPS": "2"}
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        environment[name] = str(folder / name)
    search = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(search)
    command = [sys.executable, str(FOLDER / "run.py"), "--limit", str(SECONDS)]
    command += ["--output", str(folder / "out"), str(path)]
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)


@notebooks
def test_it_is_stored_as_written_by_the_runner(path: Path):
    notebook = read(path)
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    assert path.stat().st_size <= LARGEST


@notebooks
def test_every_code_cell_was_run_once_from_the_top(path: Path):
    code = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1)), "make tutorial"


@notebooks
def test_cells_that_print_or_draw_have_an_output(path: Path):
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "code":
            assert expected_kinds("".join(cell["source"])) <= output_kinds(cell), cell["source"]


@notebooks
def test_its_outputs_are_those_of_its_code(path: Path):
    notebook = read(path)
    code = load_runner().hash_code(notebook["cells"])
    assert notebook["metadata"]["code_sha256"] == code, "make tutorial"


@notebooks
def test_its_outputs_hold_no_error_and_no_path_of_the_machine(path: Path):
    for output in stored_outputs(path):
        assert output["output_type"] in ("stream", "execute_result", "display_data")
        assert output.get("name") != "stderr"
        text = output_text(output)
        assert not PATHS.search(text) and str(ROOT) not in text and " at 0x" not in text


@notebooks
def test_it_shows_pictures(path: Path):
    assert any("image/png" in output.get("data", ()) for output in stored_outputs(path))


@notebooks
def test_it_is_for_reading(path: Path):
    text, code = sources(path, "markdown"), sources(path, "code")
    assert text[0].startswith("# ") and len(text) >= len(code) / 2
    longest = max(len(block.splitlines()) for block in code)
    assert longest <= 35, "long code belongs into the library"


@notebooks
def test_it_draws_by_the_library_alone(path: Path):
    assert imported_packages("\n".join(sources(path, "code"))) & DRAWING == set()


@pytest.mark.parametrize(
    "text", ["/home/me/file", "in (/tmp/a.py)", '"/usr/lib/x"', "C:\\Users\\me"]
)
def test_a_path_of_the_machine_is_seen(text: str):
    assert PATHS.search(text)


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        ("x = 1", set()),
        ("for x in y:\n    print(x)", {"text"}),
        ("print(1)\nplots.draw_sizes()", {"text", "picture"}),
        ("drawn = plots.new_figure(8, 4)\ndrawn", {"picture"}),
    ],
)
def test_a_missing_output_is_seen(code: str, kinds: set[str]):
    assert expected_kinds(code) == kinds
    assert output_kinds({"outputs": []}) == set()


@pytest.mark.slow
@notebooks
def test_it_runs(path: Path, tmp_path: Path):
    before = path.read_bytes()
    done = run_notebook(path, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    written = tmp_path / "out" / path.name
    assert read(written)["metadata"] == read(path)["metadata"]
    assert sources(written, "code") == sources(path, "code")
    assert sources(written, "markdown") == sources(path, "markdown")
    assert path.read_bytes() == before


def write_notebook(path: Path, code: str) -> Path:
    """Write a notebook of one code cell that was not run."""
    cell = {
        "cell_type": "code",
        "execution_count": None,
        "id": "a",
        "metadata": {},
        "outputs": [],
        "source": [code],
    }
    content = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content), "utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [("1 / 0", "ZeroDivisionError"), ("import warnings\nwarnings.warn('old')", "old")],
)
def test_a_notebook_that_fails_or_warns_is_not_written(code: str, message: str, tmp_path: Path):
    done = run_notebook(write_notebook(tmp_path / "bad.ipynb", code), tmp_path)
    assert done.returncode == 1 and message in done.stderr, done.stdout + done.stderr
    assert not (tmp_path / "out" / "bad.ipynb").exists()


@pytest.mark.slow
def test_outputs_are_stored_without_stderr_and_in_one_piece(tmp_path: Path):
    code = "import sys\nprint('one', flush=True)\nprint('log', file=sys.stderr)\nprint('two')"
    done = run_notebook(write_notebook(tmp_path / "one.ipynb", code), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (output,) = stored_outputs(tmp_path / "out" / "one.ipynb")
    assert output == {"name": "stdout", "output_type": "stream", "text": ["one\n", "two\n"]}
