"""builtin:stdlib-docs, a proofreading task out of the docstrings that every Python carries.

A row is one sentence of the standard library's docstrings. Half are as they were; in the others two
words that are not neighbours have changed places, one of them a small word such as "of" or "the",
the other not. The task is to tell which:

    "Return the number of active children."     -> intact
    "Return children number of active the."     -> swapped

Both kinds hold the same words, so a model has to read their order: what a linear head on sentence
    embeddings cannot do,
and adapting the encoder can.

Nothing is downloaded or imported: the sources are read with `ast`. Side, label and swap come from a
    hash of the text, so a
sentence gives the same row on every Python that holds it, and no module stands on both sides.
"""

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lorakit.errors import DataError

LABELS = ("intact", "swapped")

# Folders left out: tests, other people's packages, and the parts which some
# distributions leave out or newer Pythons no longer have.
SKIPPED = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "tkinter",
    "turtledemo",
}
SHORTEST, LONGEST = 5, 16  # words in a sentence
GAP = 2  # the swapped words are at least this many places apart
# One of the swapped words is of these and the other is not: two nouns or two
# verbs can often trade places and leave good English ("the name of the file").
_SMALL = """
a all an and any are as at be been but by can each for from had has have if in into is it its may must no not of on only or
should so such than that the then there they this to was were when which will with you
"""
SMALL = frozenset(_SMALL.split())

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*[,.;:]?")  # a word of plain English
_MOVABLE = re.compile(r"[A-Za-z][a-z'-]*")  # no punctuation, no acronym
_SENTENCE_END = re.compile(r"(?<=[.!?]) +(?=[A-Z])")
_NOT_PROSE = (" ", ">>>", "*", "-", "+", "|", "..")  # code, lists, tables


def _number(text: str) -> int:
    """Return a number that depends on nothing but the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def side(module: str) -> str:
    """Return train or test for a top-level module: one family in five is for testing; `io` and
    `_pyio` are one family.
    """
    family = module.lstrip("_").removeprefix("py").split("_")[0]
    return "test" if _number(f"side 28:{family}") % 5 == 0 else "train"


@cache  # reading takes seconds, and both sides are wanted
def docstrings() -> tuple[tuple[str, str], ...]:
    """Return (top-level module, docstring) for everything documented in the library."""
    return tuple(_read())


def _read() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if SKIPPED.intersection(parts) or parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "invalid escape sequence"
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            documented = isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            )
            if documented and (text := ast.get_docstring(node)):
                yield parts[0].removesuffix(".py"), text


def sentences(docstring: str) -> Iterator[str]:
    """Yield the sentences of a docstring that are ordinary prose of a handy length."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        if any(line.startswith(_NOT_PROSE) for line in paragraph.splitlines()):
            continue
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            words = sentence.split()
            if not SHORTEST <= len(words) <= LONGEST:
                continue
            if not (sentence[0].isupper() and sentence.endswith(".")):
                continue
            if sum(bool(_WORD.fullmatch(word)) for word in words) >= 0.8 * len(words):
                yield sentence


def swaps(words: list[str]) -> list[tuple[int, int]]:
    """Return the pairs of places whose words may be exchanged: never the first or last, where
    capital or full stop tell.
    """
    inner = [i for i in range(1, len(words) - 1) if _MOVABLE.fullmatch(words[i])]
    return [
        (i, j)
        for i in inner
        for j in inner
        if j - i >= GAP and (words[i].lower() in SMALL) != (words[j].lower() in SMALL)
    ]


def rows(split: str) -> list[dict[str, str]]:
    """Return the rows of one side, text and label, in an order that is mixed and always the same.

    Args:
        split: train or test.

    Raises:
        DataError: this Python comes without the sources of its library.
    """
    seen: set[str] = set()
    found: list[tuple[int, dict[str, str]]] = []
    for module, docstring in docstrings():
        for sentence in sentences(docstring):
            words = sentence.split()
            if sentence in seen or not (places := swaps(words)):
                continue
            seen.add(sentence)  # also those of the other side
            if side(module) != split:
                continue
            label = LABELS[_number("label:" + sentence) % 2]
            if label == "swapped":
                i, j = places[_number("swap:" + sentence) % len(places)]
                words[i], words[j] = words[j], words[i]
            found.append((_number("order:" + sentence), {"text": " ".join(words), "label": label}))
    if not found:
        raise DataError(
            "The standard library of this Python holds no sources with docstrings.",
            advice="Name a file as data.",
        )
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]
