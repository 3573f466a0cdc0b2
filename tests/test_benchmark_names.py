"""Names that one benchmark takes from another exist there: most of them run too long for a test."""

import ast
from functools import cache
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PATHS = {path.stem: path for path in sorted(BENCHMARKS.glob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(PATHS[module].read_text("utf-8"))


@cache
def defined_names(module: str) -> set[str]:
    """Return the names that a module defines or imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
    return names


def taken_names(module: str) -> set[tuple[str, str]]:
    """Return the names that a module takes from other benchmarks, each with its module."""
    taken: set[tuple[str, str]] = set()
    local: dict[str, str] = {}
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and node.module in PATHS:
            taken |= {(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            local |= {alias.asname or alias.name: alias.name for alias in node.names}
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            source = local.get(node.value.id)
            if source in PATHS:
                taken.add((source, node.attr))
    return taken


@pytest.mark.slow
def test_names_of_other_benchmarks_exist() -> None:
    missing = [
        f"{module}: {source}.{name}"
        for module in PATHS
        for source, name in sorted(taken_names(module))
        if name not in defined_names(source)
    ]
    assert missing == []


@pytest.mark.slow
def test_functions_are_not_found_by_text() -> None:
    calling = {
        module
        for module in PATHS
        if any(ast.unparse(node) == "globals()" for node in ast.walk(tree_of(module)))
    }
    assert calling == set()
