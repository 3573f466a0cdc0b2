"""builtin:stdlib-docs, a proofreading task from the docstrings of Python's standard library.

A row is one sentence of a docstring. In half of the rows two words that are not neighbours have
been exchanged, one of them a small word such as "of" or "the", the other not. The task is to
recognise these rows:

    "Return the number of active children."     -> intact
    "Return children number of active the."     -> swapped

Rows of both labels hold the same words, so a model has to read their order. A linear head on
sentence embeddings cannot do that, and adapting the encoder can.

Nothing is downloaded or imported: the sources are read with `ast`. Split, label and swap come from
a hash of the text. A sentence therefore gives the same row on every Python that has it, and no
module is in both splits.
"""

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import product
from operator import itemgetter
from pathlib import Path

from lorakit.errors import DataError

LABELS = ("intact", "swapped")

# Folders left out: tests, other people's packages, and parts that some distributions leave out or
# newer Pythons no longer have.
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
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SHORTEST, LONGEST = 5, 16  # words in a sentence
GAP = 2  # the swapped words are at least this many places apart
# One of the swapped words is of these and the other is not: two nouns or two verbs can often be
# exchanged and leave good English ("the name of the file").
_SMALL = """
a all an and any are as at be been but by can each for from had has have if in into is it its may
must no not of on only or should so such than that the then there they this to was were when which
will with you
"""
SMALL = frozenset(_SMALL.split())

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*[,.;:]?")  # a word of plain English
_MOVABLE = re.compile(r"[A-Za-z][a-z'-]*")  # no punctuation, no acronym
_SENTENCE_END = re.compile(r"(?<=[.!?]) +(?=[A-Z])")
_NOT_PROSE = (" ", ">>>", "*", "-", "+", "|", "..")  # code, lists, tables


def _hash_number(text: str) -> int:
    """Return a number that depends on nothing but the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def split_of(module: str) -> str:
    """Return the split of a top-level module, train or test.

    One family of modules in five is for testing; `io` and `_pyio` are one family.
    """
    family = module.lstrip("_").removeprefix("py").split("_")[0]
    return "test" if _hash_number(f"side 28:{family}") % 5 == 0 else "train"


@cache  # reading takes seconds, and both splits are needed
def read_docstrings() -> tuple[tuple[str, str], ...]:
    """Return (top-level module, docstring) for everything documented in the library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[str, str]] = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if SKIPPED.intersection(parts) or parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        module = parts[0].removesuffix(".py")
        found += [(module, docstring) for docstring in _docstrings_of(path)]
    return tuple(found)


def _docstrings_of(path: Path) -> Iterator[str]:
    """Yield the docstrings of a source file, none if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "invalid escape sequence"
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, DOCUMENTED):
            continue
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring


def split_sentences(docstring: str) -> Iterator[str]:
    """Yield the sentences of a docstring that are ordinary prose of a usable length."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        if any(line.startswith(_NOT_PROSE) for line in paragraph.splitlines()):
            continue
        joined = " ".join(paragraph.split())
        yield from filter(_is_prose, _SENTENCE_END.split(joined))


def _is_prose(sentence: str) -> bool:
    words = sentence.split()
    if not SHORTEST <= len(words) <= LONGEST:
        return False
    if not (sentence[0].isupper() and sentence.endswith(".")):
        return False
    plain_words = sum(bool(_WORD.fullmatch(word)) for word in words)
    return plain_words >= 0.8 * len(words)


def find_swaps(words: list[str]) -> list[tuple[int, int]]:
    """Return the pairs of positions whose words may be exchanged.

    The first and the last word stay: a capital letter or a full stop would show the exchange.
    """
    movable = [i for i in range(1, len(words) - 1) if _MOVABLE.fullmatch(words[i])]
    return [
        (first, second)
        for first, second in product(movable, movable)
        if second - first >= GAP and _is_small(words[first]) != _is_small(words[second])
    ]


def _is_small(word: str) -> bool:
    return word.lower() in SMALL


def make_rows(split: str) -> list[dict[str, str]]:
    """Return the rows of a split, text and label, in a mixed order that is always the same.

    Args:
        split: train or test.

    Raises:
        DataError: this Python has no sources of its library.
    """
    seen: set[str] = set()
    numbered: list[tuple[int, dict[str, str]]] = []
    for module, docstring in read_docstrings():
        for sentence in split_sentences(docstring):
            if sentence in seen:
                continue
            swaps = find_swaps(sentence.split())
            if not swaps:
                continue
            seen.add(sentence)  # also if it is of the other split
            if split_of(module) == split:
                numbered.append((_hash_number("order:" + sentence), _make_row(sentence, swaps)))
    if not numbered:
        raise DataError(
            "The standard library of this Python has no sources with docstrings.",
            advice="Name a file as data.",
        )
    numbered.sort(key=itemgetter(0))
    return [row for _, row in numbered]


def _make_row(sentence: str, swaps: list[tuple[int, int]]) -> dict[str, str]:
    words = sentence.split()
    label = LABELS[_hash_number("label:" + sentence) % 2]
    if label == "swapped":
        first, second = swaps[_hash_number("swap:" + sentence) % len(swaps)]
        words[first], words[second] = words[second], words[first]
    return {"text": " ".join(words), "label": label}
