"""Seven layers: a room imports those before it, and rooms of its own layer without a circle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from .sources import BENCHMARKS, FILES, ROOT, SRC, circle, imported_modules, short_name

LAYERS = [
    "errors text files linalg patterns spec",
    "deltas sites",
    "inits formats adapter",
    "inject",
    "analysis ranks algebra merging models data tasks evaluate plan plots",
    "train rank_search compare explain",
    "cli loralib __main__",
]
LAYER = {room: height for height, rooms in enumerate(LAYERS) for room in rooms.split()}
INSIDE = [path for path in FILES if path != SRC / "__init__.py"]
LIGHT = [
    "lorakit",
    "lorakit.spec",
    "lorakit.errors",
    "lorakit.train.config",
    "lorakit.rank_search.config",
    "lorakit.cli.__main__",
]


def room_of(path: Path) -> str:
    """Return the room of a file: its folder in the package, or the name of a file at the top."""
    return path.relative_to(SRC).with_suffix("").parts[0]


def module_of(path: Path, root: Path) -> str:
    """Return the dotted name of a file; a package's name for its `__init__`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def upward_imports(room: str, source: str) -> list[str]:
    """Return the imports that a file of this room may not have."""
    found = []
    for module, line in imported_modules(source).items():
        if module.startswith("."):
            found.append(f"line {line}: relative import")
            continue
        parts = module.split(".")
        if parts == ["lorakit"] or parts[0] != "lorakit":
            continue
        if LAYER.get(parts[1], len(LAYERS)) > LAYER[room]:
            found.append(f"line {line}: {module}")
    return found


def module_graph(paths: list[Path], root: Path) -> dict[str, set[str]]:
    """Return which module of these files imports which."""
    sources = {module_of(path, root): path.read_text("utf-8") for path in paths}
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        targets = imported_modules(source).keys() & sources.keys()
        # A package that is only the way to one of its modules is no arrow of its own.
        deeper = {
            name for name in targets if any(other.startswith(f"{name}.") for other in targets)
        }
        graph[module] = targets - deeper - {module}
    return graph


def test_layers_list_what_exists() -> None:
    assert {room_of(path) for path in INSIDE} == LAYER.keys()


@pytest.mark.slow
def test_imports_go_down() -> None:
    upward = {
        short_name(path): upward_imports(room_of(path), path.read_text("utf-8")) for path in INSIDE
    }
    assert {name: found for name, found in upward.items() if found} == {}


@pytest.mark.slow
def test_no_circle_of_modules() -> None:
    assert circle(module_graph(INSIDE, SRC.parent)) == []


@pytest.mark.slow
def test_no_circle_of_rooms() -> None:
    graph: dict[str, set[str]] = {}
    for module, targets in module_graph(INSIDE, SRC.parent).items():
        room = module.split(".")[1]
        others = {target.split(".")[1] for target in targets}
        graph.setdefault(room, set()).update(others - {room})
    assert circle(graph) == []


@pytest.mark.slow
def test_no_circle_of_benchmarks() -> None:
    assert circle(module_graph(BENCHMARKS, ROOT / "benchmarks")) == []


@pytest.mark.parametrize(
    "planted",
    [
        "from lorakit.cli import x",
        "import lorakit.inject.attach",
        "def f():\n from lorakit.inject import attach",
        "from . import linear",
        "from lorakit import Spec",
        "from lorakit.nowhere import x",
    ],
)
def test_an_upward_import_is_seen(planted: str) -> None:
    source = f"import lorakit.errors\nfrom lorakit.spec import Spec\n{planted}"
    assert upward_imports("deltas", source)


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


@pytest.mark.slow
@pytest.mark.parametrize("module", LIGHT)
def test_light_imports(module: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy'}"
    code = f"import sys, {module}; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_no_public_function_is_called_like_a_room() -> None:
    import lorakit

    rooms = {room_of(path) for path in INSIDE}
    assert rooms & set(lorakit.__all__) == set()


def shadowed_modules(path: Path) -> set[str]:
    """Return the modules of a room whose names its `__init__` gives to something else."""
    modules = {other.stem for other in path.parent.glob("*.py")}
    modules |= {folder.name for folder in path.parent.iterdir() if folder.is_dir()}
    room = f"lorakit.{module_of(path, SRC)}"
    exported = set[str]()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module != room:
            exported |= {alias.asname or alias.name for alias in node.names}
    return exported & modules


def test_a_room_exports_no_function_under_the_name_of_its_module() -> None:
    rooms = [path for path in INSIDE if path.name == "__init__.py"]
    shadowed = {short_name(path): shadowed_modules(path) for path in rooms}
    assert {room: names for room, names in shadowed.items() if names} == {}


def test_a_shadowed_module_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shadowed_modules.__globals__, "SRC", tmp_path)
    room = tmp_path / "inject"
    room.mkdir()
    (room / "attach.py").write_text("def attach(): pass\n")
    (room / "__init__.py").write_text("from lorakit.inject.attach import attach\n")
    assert shadowed_modules(room / "__init__.py") == {"attach"}
    (room / "__init__.py").write_text("from lorakit.inject import attach\n")
    assert shadowed_modules(room / "__init__.py") == set()
