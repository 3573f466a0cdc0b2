"""A room may import only rooms on lower floors; rooms of one floor do not know each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "lorakit"
FLOORS = [
    "errors",
    "spec fused svd recompute",
    "delta site",
    "slot deltas sites",
    "formats shares",
    "targets fingerprint inits adapter spectra",
    "vocabulary coarse",
    "fusing attach overlap data models ranks",
    "coverage check merging rows anatomy suggestion attention",
    "algebra plots",
    "evaluate",
    "plan",
    "train export serve",
    "choose baselines",
    "explain",
    "cli ui loralib",
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms.split()}
FILES = sorted(path.relative_to(SRC) for path in SRC.rglob("*.py") if path != SRC / "__init__.py")
LIGHT = ["lorakit", "lorakit.spec", "lorakit.errors", "lorakit.train.config", "lorakit.choose.config", "lorakit.cli.__main__"]


def climbs(room: str, source: str) -> list[str]:
    """Return the imports that a file of this room may not have."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"lorakit.{alias.name}" for alias in node.names] if node.module == "lorakit" else [node.module or ""]
            names = ["lorakit..relative"] if node.level else names
        for other in (name.split(".")[1] for name in names if name.startswith("lorakit.")):
            if other != room and FLOOR.get(other, len(FLOORS)) >= FLOOR[room]:
                found.append(f"line {node.lineno}: {other}")
    return found


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_down(file: Path):
    room = file.with_suffix("").parts[0]
    assert room in FLOOR, f"{room} is on no floor: add it to FLOORS"
    assert climbs(room, (SRC / file).read_text("utf-8")) == []


@pytest.mark.parametrize(
    "planted",
    ["from lorakit.cli import x", "import lorakit.attach", "def f():\n from lorakit import site", "from . import site",
     "from lorakit import Spec", "from lorakit.nowhere import x"],
)  # fmt: skip
def test_climbing_is_seen(planted: str):
    assert climbs("delta", f"import lorakit.errors\nfrom lorakit.spec import Spec\n{planted}")


@pytest.mark.parametrize("module", LIGHT)
def test_light_imports(module: str):
    code = f"import sys, {module}; print(*sorted({{'torch', 'transformers', 'numpy'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
