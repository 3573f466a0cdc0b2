"""Habits that the code does not have, and honest names of files."""

import ast

import pytest

from .sources import FILES, ROOT, short_name

EMPTY_NAMES = {"utils", "helpers", "common", "misc", "other", "util", "helper"}
LEFTOVERS = ("_v2", "_old", "_legacy", "_extended")


def habits(source: str) -> list[str]:
    """Return what the house does not do: where, and what."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append((node.lineno, "bare except"))
        if isinstance(node, ast.Assert):
            found.append((node.lineno, "assert: raise one of our errors"))
        if isinstance(node, ast.Call):
            given = {
                k.arg: k.value.value if isinstance(k.value, ast.Constant) else None
                for k in node.keywords
            }
            if ast.unparse(node.func) == "torch.load" and given.get("weights_only") is not True:
                found.append((node.lineno, "torch.load without weights_only=True"))
            if given.get("trust_remote_code"):
                found.append((node.lineno, "trust_remote_code"))
            # A partial names the function in its first argument.
            named = [ast.unparse(part) for part in (node.func, *node.args[:1])]
            is_loading = any(name.startswith("Auto") or ".from_pre" in name for name in named)
            is_loading = is_loading or named[0].endswith(".from_config")
            if is_loading and "trust_remote_code" not in given:
                found.append((node.lineno, "transformers asks whether it may run code"))
    return [f"line {line}: {what}" for line, what in sorted(found)]


@pytest.mark.parametrize("folder", ["src", "tests", "examples", "benchmarks"])
def test_honest_names(folder: str):
    parts = {
        part.removesuffix(".py")
        for path in (ROOT / folder).rglob("*.py")
        for part in path.relative_to(ROOT).parts
    }
    assert (
        sorted(
            part
            for part in parts
            if part.lower() in EMPTY_NAMES or part.lower().endswith(LEFTOVERS)
        )
        == []
    )


@pytest.mark.slow
def test_the_package_has_none():
    found = {short_name(path): habits(path.read_text("utf-8")) for path in FILES}
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "planted",
    [
        "try: x()\nexcept: pass",
        "assert x",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "load(name, trust_remote_code=True)",
    ],
)
def test_bad_habits_are_seen(planted: str):
    assert len(habits(planted)) == 1
    assert habits("torch.load(f, weights_only=True)") == []
