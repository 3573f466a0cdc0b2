"""Lines of few tokens, functions that fit on a screen, and plain docstrings."""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from .sources import FILES, short_name

AVERAGE, DENSEST, SHORT_FILE = 9.0, 11.0, 15
FUNCTION_LINES, FILE_LINES = 50, 500
RELATIVE_OPENINGS, ANY_REASONS = 10, 60
LETTERS = set("ABMxyi_")
LAYOUT_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
RELATIVE = re.compile(
    r"(?:(?:Returns?|Tells?|Yields?|Says?) )?(?:what|which|how|where|whether)\b", re.I
)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the numbers of the lines of all docstrings, those under fields included."""
    found: set[int] = set()
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found.update(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    return found


@cache
def density(path: Path) -> tuple[int, int]:
    """Return the tokens and the code lines of a file: names, operators, numbers and strings."""
    source = path.read_text("utf-8")
    docstrings = docstring_lines(tree_of(path))
    tokens, lines = 0, set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_docstring = token.type == tokenize.STRING and token.start[0] in docstrings
        if token.type in LAYOUT_TOKENS or is_docstring:
            continue
        tokens += 1
        lines.update(range(token.start[0], token.end[0] + 1))
    return tokens, len(lines)


def long_functions(tree: ast.Module) -> Iterator[str]:
    """Yield the functions longer than a screen; a docstring does not count."""
    for node in ast.walk(tree):
        if not isinstance(node, FUNCTIONS):
            continue
        first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
        lines = (node.end_lineno or 0) - first.lineno + 1
        if lines > FUNCTION_LINES:
            yield f"line {node.lineno}: {node.name} has {lines} lines"


def crowded_comprehensions(tree: ast.Module) -> Iterator[str]:
    """Yield the comprehensions with two `for`, or a walrus."""
    for node in ast.walk(tree):
        if not isinstance(node, COMPREHENSIONS):
            continue
        if len(node.generators) > 1:
            yield f"line {node.lineno}: two `for` in a comprehension"
        if any(isinstance(inner, ast.NamedExpr) for inner in ast.walk(node)):
            yield f"line {node.lineno}: a walrus in a comprehension"


def bound_names(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the names that a node itself binds, with their lines."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id, node.lineno
    elif isinstance(node, ast.arg):
        yield node.arg, node.lineno
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name, node.lineno


def single_letters(tree: ast.Module) -> Iterator[str]:
    """Yield the names of one letter, but for those of the field and of a cited formula.

    A formula is cited where a docstring around the name has a `Source:` and holds the letter.
    """

    def walk(node: ast.AST, allowed: set[str]) -> Iterator[str]:
        if isinstance(node, SCOPES):
            text = ast.get_docstring(node) or ""
            if "Source:" in text:
                allowed = allowed | set(re.findall(r"\b([A-Za-z])(?=\b|_|\d)", text))
        for name, line in bound_names(node):
            if len(name) == 1 and name not in allowed:
                yield f"line {line}: {name}"
        for child in ast.iter_child_nodes(node):
            yield from walk(child, allowed)

    yield from walk(tree, LETTERS)


def relative_openings(tree: ast.Module) -> Iterator[str]:
    """Yield the docstrings that begin with a relative clause."""
    for node in ast.walk(tree):
        if isinstance(node, SCOPES):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            if RELATIVE.match(first):
                yield first


def any_arguments(tree: ast.Module) -> Iterator[int]:
    """Yield the lines of arguments and results that are annotated as Any alone."""
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [extra for extra in (node.args.vararg, node.args.kwarg) if extra]
            for annotation in (*(one.annotation for one in arguments), node.returns):
                if isinstance(annotation, ast.Name) and annotation.id == "Any":
                    yield annotation.lineno


def faults_of(look: Callable[[ast.Module], Iterable[str]]) -> list[str]:
    """Return all that one look finds in the package, with the files."""
    return [f"{short_name(path)}: {fault}" for path in FILES for fault in look(tree_of(path))]


@pytest.mark.slow
def test_lines_of_the_package_have_few_tokens() -> None:
    tokens = sum(density(path)[0] for path in FILES)
    lines = sum(density(path)[1] for path in FILES)
    assert tokens / lines <= AVERAGE


@pytest.mark.slow
def test_lines_of_a_file_have_few_tokens() -> None:
    long_files = {path: density(path) for path in FILES if density(path)[1] > SHORT_FILE}
    dense = {short_name(path): tokens / lines for path, (tokens, lines) in long_files.items()}
    assert {name: tokens for name, tokens in dense.items() if tokens > DENSEST} == {}


def test_no_file_is_long() -> None:
    lengths = {short_name(path): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES} == {}


@pytest.mark.slow
@pytest.mark.parametrize("look", [long_functions, crowded_comprehensions, single_letters])
def test_the_package_has_none(look: Callable[[ast.Module], Iterable[str]]) -> None:
    assert faults_of(look) == []


@pytest.mark.slow
def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    found = faults_of(relative_openings)
    assert len(found) <= RELATIVE_OPENINGS, found


@pytest.mark.slow
def test_any_is_rare_and_has_a_reason() -> None:
    found, without = 0, []
    for path in FILES:
        lines = path.read_text("utf-8").splitlines()
        for line in any_arguments(tree_of(path)):
            found += 1
            if not re.search(r"# noqa: ANN401 +\S", lines[line - 1]):
                without.append(f"{short_name(path)}:{line}")
    assert found <= ANY_REASONS
    assert without == []


@pytest.mark.parametrize(
    ("look", "planted"),
    [
        (crowded_comprehensions, "[x for y in z for x in y]"),
        (crowded_comprehensions, "{x for y in z if (x := y)}"),
        (single_letters, "def add(n): return n"),
        (single_letters, "for k in range(3): pass"),
        (relative_openings, "'''What the rows get.'''"),
        (relative_openings, "def f():\n '''Return whether it is on.'''"),
        (any_arguments, "def f(x: Any): pass"),
        (any_arguments, "def f() -> Any: pass"),
        (long_functions, "def f():\n" + " x = 1\n" * 51),
    ],
)
def test_a_planted_fault_is_seen(look, planted: str) -> None:
    assert list(look(ast.parse(planted)))


def test_a_cited_letter_is_allowed() -> None:
    cited = "def f(k):\n '''Return k.\n\n Source: a paper.\n '''"
    assert list(single_letters(ast.parse(cited))) == []
