"""Name patterns of a config: the first that matches a module, in bounded time.

PEFT compares each pattern with a name as `re.match(rf"(.*\\.)?({pattern})$", name)`. Nearly all
patterns are names, with dots that stand for any character. Those are found by a table, so that
thousands of them take no time. The others are regular expressions, whose matching may take
exponential time: all together have two seconds.

Source: huggingface/peft 0.21, `get_pattern_key` in `utils/other.py`.
"""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import regex

from lorakit.errors import AdapterFileError
from lorakit.formats.checked_json import format_value

MOST_EXPRESSIONS = 2000
LONGEST = 2000  # characters of an expression
SECONDS = 2.0  # of the processor, for all names of a file
PLAIN = re.compile(r"(\^?)((?:[^\\^$.|?*+()\[\]{}]|\.|\\[^A-Za-z0-9])*)(\$?)")
Value = TypeVar("Value")


@dataclass(frozen=True)
class PlainPattern:
    """A pattern that is a name.

    Attributes:
        text: the name, with a dot wherever any character fits.
        wildcards: the positions of these dots.
        is_full: True if it matches full names only, and no last parts of a name.
    """

    text: str
    wildcards: tuple[int, ...]
    is_full: bool

    @property
    def form(self) -> tuple[bool, tuple[int, ...]]:
        """The facts that patterns in the same table share, besides their length."""
        return self.is_full, self.wildcards


@lru_cache(maxsize=1 << 16)
def parse_plain(pattern: str) -> PlainPattern | None:
    """Return a pattern that is a name; None for other regular expressions.

    >>> parse_plain(r"^h\\.0.q$")
    PlainPattern(text='h.0.q', wildcards=(3,), is_full=True)
    >>> parse_plain("q|v") is None
    True
    """
    found = PLAIN.fullmatch(pattern)
    if found is None:
        return None
    characters: list[str] = []
    wildcards: list[int] = []
    for token in re.findall(r"\\?.", found[2], re.DOTALL):
        if token == ".":
            wildcards.append(len(characters))
        characters.append(token[-1])
    return PlainPattern("".join(characters), tuple(wildcards), bool(found[1]))


def find_expression_fault(pattern: str) -> str:
    """Return why a pattern cannot be used, or an empty string."""
    if parse_plain(pattern) is not None:
        return ""
    if len(pattern) > LONGEST:
        return f"it has {len(pattern):,} characters, {LONGEST:,} are the limit"
    try:
        re.compile(pattern)
        _compile(pattern)
    except (re.error, regex.error, OverflowError, RecursionError, MemoryError) as error:
        return str(error) or type(error).__name__
    return ""


def _compile(pattern: str) -> "regex.Pattern[str]":
    return regex.compile(rf"(.*\.)?({pattern})$")


def count_expressions(patterns: Mapping[str, object]) -> int:
    """Return the number of patterns that are no names."""
    return sum(parse_plain(pattern) is None for pattern in patterns)


def list_last_parts(name: str) -> list[str]:
    """Return a dotted name, and what is left of it behind each dot.

    >>> list_last_parts("h.0.q")
    ['h.0.q', '0.q', 'q']
    """
    return [name, *(name[found.end() :] for found in re.finditer(r"\.", name))]


class ValuesByPattern(Generic[Value]):
    """Values by pattern; the first pattern that matches a name counts.

    Args:
        values: by pattern, in PEFT's order.

    >>> table = ValuesByPattern({"h.0.q": 2, "q|v": 3})
    >>> [table.find(name, 1) for name in ("model.h.0.q", "h.1.q", "h.1.k")]
    [2, 3, 1]
    """

    def __init__(self, values: Mapping[str, Value]):
        self._values = list(values.values())
        self._expressions: list[tuple[int, str]] = []
        self._compiled: dict[str, regex.Pattern[str]] = {}
        # By length; then by form; then by text: the position of the pattern.
        self._plain: dict[int, dict[tuple[bool, tuple[int, ...]], dict[str, int]]] = {}
        self._seconds = SECONDS
        for position, pattern in enumerate(values):
            plain = parse_plain(pattern)
            if plain is None:
                self._expressions.append((position, pattern))
            else:
                by_form = self._plain.setdefault(len(plain.text), {})
                by_form.setdefault(plain.form, {}).setdefault(plain.text, position)

    def find(self, name: str, default: Value) -> Value:
        """Return the value of the first pattern that matches a name.

        Raises:
            AdapterFileError: the expressions need more time than a file may take.
        """
        first = min(self._find_plain(name), default=len(self._values))
        if self._expressions:
            first = self._find_expression(name, first)
        return self._values[first] if first < len(self._values) else default

    def _find_expression(self, name: str, first: int) -> int:
        """Return the position of the first expression that matches a name, at most `first`."""
        started = time.thread_time()
        for position, pattern in self._expressions:
            if position > first:
                break
            if self._is_match(pattern, name, started):
                first = position
                break
        self._seconds -= time.thread_time() - started
        return first

    def _find_plain(self, name: str) -> Iterator[int]:
        """Yield the positions of the names that match, one for each form."""
        for part in list_last_parts(name):
            for (is_full, wildcards), positions in self._plain.get(len(part), {}).items():
                if is_full and part != name:
                    continue
                position = positions.get(_put_dots(part, wildcards))
                if position is not None:
                    yield position

    def _is_match(self, pattern: str, name: str, started: float) -> bool:
        left = self._seconds - (time.thread_time() - started)
        try:
            if left <= 0:
                raise TimeoutError
            expression = self._compiled.get(pattern)
            if expression is None:
                expression = self._compiled[pattern] = _compile(pattern)
            return expression.match(name, timeout=left) is not None
        except (TimeoutError, MemoryError, RecursionError) as error:
            raise AdapterFileError(
                f"The patterns of the config take more than {SECONDS:g} s: comparing "
                f"{format_value(pattern)} with the module {name} was stopped.",
                advice="Write them as names of modules. Nothing was loaded.",
            ) from error


def _put_dots(text: str, positions: tuple[int, ...]) -> str:
    """Return a text with a dot at each of these positions.

    >>> _put_dots("abc", (1,))
    'a.c'
    """
    if not positions:
        return text
    characters = list(text)
    for position in positions:
        characters[position] = "."
    return "".join(characters)
