"""Name patterns of modules: full names or their last parts, wildcards, and ranges of numbers."""

import glob
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase, translate
from functools import lru_cache

RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
NUMBER = r"(?<!\d)(\d+)(?!\d)"
PLACEHOLDER = "\ue000"  # of a range; no name has it


def matches(pattern: str, name: str) -> bool:
    """Return True if a pattern is the name of a module, or its last parts.

    `*` and `?` stand for any characters, `[...]` for one of several, and `{8..11}` for a whole
    number from 8 to 11.

    >>> matches("q_proj", "layers.0.q_proj"), matches("layers.0.*", "model.layers.0.q_proj")
    (True, True)
    >>> matches("proj", "q_proj"), matches("layers.{8..11}.q", "model.layers.10.q")
    (False, True)
    """
    # Equal names first: a name may contain characters that are special in a pattern.
    if name == pattern or name.endswith("." + pattern):
        return True
    if "{" in pattern and RANGE.search(pattern):
        return _is_in_ranges(pattern, name)
    return fnmatchcase(name, pattern) or fnmatchcase(name, "*." + pattern)


def _is_in_ranges(pattern: str, name: str) -> bool:
    """Return True if a pattern with ranges matches a name with a number in each of them."""
    found = _compile(pattern).match(name)
    if found is None:
        return False
    ranges = zip(RANGE.findall(pattern), found.groups(), strict=True)
    return all(int(first) <= int(number) <= int(last) for (first, last), number in ranges)


@lru_cache(maxsize=1024)
def _compile(pattern: str) -> re.Pattern[str]:
    """Return the expression of names that a pattern matches, with any numbers for its ranges."""
    expression = translate(RANGE.sub(PLACEHOLDER, pattern)).replace(PLACEHOLDER, NUMBER)
    return re.compile(rf"(?s:.*\.)?{expression}")


class PatternTable:
    """Name patterns in their order; thousands of full names are found as fast as one.

    Args:
        patterns: as `matches` takes them.

    >>> table = PatternTable(["h.0.q", "h.*", "q"])
    >>> table.find("model.h.0.q"), table.find("h.1.q"), table.find("q"), table.find("v")
    ('h.0.q', 'h.*', 'q', None)
    """

    def __init__(self, patterns: Iterable[str]):
        self._patterns = list(patterns)
        self._names: dict[str, int] = {}  # positions of patterns that are names
        self._others: list[tuple[int, str]] = []
        for position, pattern in enumerate(self._patterns):
            name = re.sub(r"\[([*?[])\]", r"\1", pattern)  # as glob.escape writes a name
            is_name = glob.escape(name) == pattern and not RANGE.search(pattern)
            self._names.setdefault(name if is_name else pattern, position)
            if not is_name:
                self._others.append((position, pattern))

    def find(self, name: str) -> str | None:
        """Return the first pattern that matches a name, or None."""
        parts = name.split(".")
        endings = (".".join(parts[start:]) for start in range(len(parts)))
        found = [self._names[ending] for ending in endings if ending in self._names]
        first = min(found, default=len(self._patterns))
        for position, pattern in self._others:
            if position > first:
                break
            if matches(pattern, name):
                return pattern
        return self._patterns[first] if found else None


def first_match(patterns: Iterable[str], name: str) -> str | None:
    """Return the first pattern that matches a name, or None."""
    for pattern in patterns:
        if matches(pattern, name):
            return pattern
    return None
