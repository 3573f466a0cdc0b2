"""Where a docstring describes arguments, they are those of the signature, all of them and in its
order (pydoclint).

pydoclint would also have every docstring of more than a sentence describe every argument. The house
does not repeat what the signature says, so a docstring without `Args` is left alone.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "lorakit"
ALWAYS = ("DOC0", "DOC102", "DOC104")  # unreadable, an argument that is not there, another order
WITH_ARGS = ("DOC101", "DOC103")  # an argument that is not described


def described(path: Path) -> set[int]:
    """Return the lines on which something with an `Args` section begins."""
    nodes = [
        n
        for n in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(n, ast.FunctionDef | ast.ClassDef)
    ]
    owners = [n for n in nodes if re.search(r"^Args:$", ast.get_docstring(n) or "", re.MULTILINE)]
    inner = [
        i for n in owners for i in n.body if isinstance(i, ast.FunctionDef) and i.name == "__init__"
    ]
    return {
        line
        for n in [*owners, *inner]
        for line in range(n.lineno - len(n.decorator_list), n.lineno + 1)
    }


@cache
def findings(place: Path) -> list[tuple[Path, int, str, str]]:
    """Return all that pydoclint says of a file or folder: file, line, code, text."""
    options = [
        "--quiet",
        f"--config={ROOT / 'pyproject.toml'}",
        "--show-filenames-in-every-violation-message=True",
    ]
    command = [sys.executable, "-m", "pydoclint.main", *options, str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = re.findall(r"^(.+?):(\d+): (DOC\d+): (.*)", done.stdout + done.stderr, re.MULTILINE)
    assert done.returncode == 0 or found, done.stderr
    return [(ROOT / path.strip(), int(line), code, text) for path, line, code, text in found]


def faults(path: Path, place: Path) -> list[str]:
    """Return what is said of this file when pydoclint reads `place`, less what the house leaves
    open.
    """
    lines = described(path)
    return [
        f"{line}: {code}: {text}"
        for file, line, code, text in findings(place)
        if file == path and (code.startswith(ALWAYS) or (code in WITH_ARGS and line in lines))
    ]


@pytest.mark.slow
def test_arguments_are_those_of_the_signature():
    found = {str(path.relative_to(SRC)): faults(path, SRC) for path in sorted(SRC.rglob("*.py"))}
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        "rank: how many.\n        beta: not there.",
        "alpha: strong.\n        rank: many.",
        "rank: many.",
    ],
)
def test_wrong_arguments_are_seen(tmp_path: Path, args: str):
    path = tmp_path / "planted.py"
    path.write_text(
        'def scale(rank: int, alpha: float) -> float:\n    """Give the scale.\n\n    Args:\n     '
        f'   {args}\n    """\n'
        "    return alpha / rank\n"
    )
    assert faults(path, path)
