"""The Python files of this repository, as the tests of structure and style read them."""

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "lorakit"
FILES = sorted(SRC.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))


def short_name(path: Path) -> str:
    """Return the path as a test's name shows it."""
    base = SRC if path.is_relative_to(SRC) else ROOT
    return path.relative_to(base).as_posix()


def imported_modules(source: str) -> dict[str, int]:
    """Return every module that a source names in an import, with the line; those inside functions
    too.

    `from lorakit.train import loop` counts as `lorakit.train.loop`, and as `lorakit.train`.
    """
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.name] = node.lineno
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found[module] = node.lineno
            for alias in node.names:
                found[f"{module}.{alias.name}"] = node.lineno
    return found


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Return the names along one circle of a graph, or nothing where there is none."""
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(arrows.get(name, ())):
            if found := follow(target, [*path, name]):
                return found
        done.add(name)
        return []

    for start in sorted(arrows):
        if found := follow(start, []):
            return found
    return []


def sample(rows: Iterable[tuple[Any, ...]], every: int) -> list[Any]:
    """Return the rows of a long table as parameters of a test; `make test` runs one in `every`.

    Args:
        rows: arguments of each case.
        every: with no factor in common with the number of columns, so that each has its turn.
    """
    marks = [() if number % every == 0 else pytest.mark.soak for number in range(every)]
    return [pytest.param(*row, marks=marks[i % every]) for i, row in enumerate(rows)]
