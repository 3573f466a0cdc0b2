"""The house stays small, and its names honest."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "lorakit"
FILES = sorted(SRC.rglob("*.py"))
CORE = ["errors", "spec", "delta", "site", "slot", "adapter", "attach", "merging", "fused"]
CORE_LINES, FILE_LINES, SHELF_LINES = 1650, 400, 150
SHELVES = {"deltas", "sites"}
EMPTY_NAMES = {"utils", "helpers", "common", "misc", "other", "util", "helper"}
LEFTOVERS = ("_v2", "_old", "_legacy", "_extended")

files = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))


def lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def habits(source: str) -> list[str]:
    """Return what the house does not do: where, and what."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append((node.lineno, "bare except"))
        if isinstance(node, ast.Assert):
            found.append((node.lineno, "assert: raise one of our errors"))
        if isinstance(node, ast.Call):
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if ast.unparse(node.func) == "torch.load" and given.get("weights_only") is not True:
                found.append((node.lineno, "torch.load without weights_only=True"))
            if given.get("trust_remote_code"):
                found.append((node.lineno, "trust_remote_code"))
    return [f"line {line}: {what}" for line, what in sorted(found)]


def test_core_budget():
    counted = {name: lines(SRC / f"{name}.py") for name in CORE}
    assert sum(counted.values()) <= CORE_LINES, counted


@files
def test_file_budget(path: Path):
    shelf = SHELVES & set(path.relative_to(SRC).parts[:-1]) and path.name != "__init__.py"
    assert lines(path) <= (SHELF_LINES if shelf else FILE_LINES)


@pytest.mark.parametrize("folder", ["src", "tests", "examples", "benchmarks"])
def test_honest_names(folder: str):
    parts = {part.removesuffix(".py") for path in (ROOT / folder).rglob("*.py") for part in path.relative_to(ROOT).parts}
    assert sorted(part for part in parts if part.lower() in EMPTY_NAMES or part.lower().endswith(LEFTOVERS)) == []


@files
def test_habits(path: Path):
    assert habits(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "planted",
    ["try: x()\nexcept: pass", "assert x", "torch.load(f)", "torch.load(f, weights_only=False)",
     "load(name, trust_remote_code=True)"],
)  # fmt: skip
def test_bad_habits_are_seen(planted: str):
    assert len(habits(planted)) == 1
    assert habits("torch.load(f, weights_only=True)") == []
