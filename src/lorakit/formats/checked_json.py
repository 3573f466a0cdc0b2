"""JSON of files that anybody may have written: parsed within bounds, and checked for its types."""

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import cast

from lorakit.spec import is_whole

Check = Callable[[object], bool]

# Bytes and values; those of 3,000 modules with a rank each are 0.5 MiB and 15,000 values. A value
# of two bytes takes up to 200 bytes of memory.
LARGEST_TEXT, MOST_VALUES = 8 << 20, 100_000
DEEPEST = 32  # objects and lists inside each other; lorakit and PEFT write 5 at most
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def parse_json(text: str | bytes) -> object:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not JSON, too large, or too deeply nested; the text of the error says
            which, as it follows "the file is not JSON".
    """
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"{len(text):,} bytes are more than the {LARGEST_TEXT:,} that are read")
    count = text.count(b",") if isinstance(text, bytes) else text.count(",")
    if count > MOST_VALUES:
        raise ValueError(f"{count:,} values are more than the {MOST_VALUES:,} that are read")
    try:
        value: object = json.loads(text)
    except RecursionError:
        value, depth = None, DEEPEST + 1
    else:
        depth = _measure_depth(value)
    if depth > DEEPEST:
        raise ValueError(f"objects are nested in each other more than {DEEPEST} times")
    return value


def _measure_depth(value: object) -> int:
    """Return how many objects and lists are inside each other, up to one more than is allowed."""
    depth, layer = 0, [value]
    while depth <= DEEPEST:
        layer = list(chain.from_iterable(map(_list_values, layer)))
        if not layer:
            break
        depth += 1
    return depth


def _list_values(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return cast(dict[str, object], value).values()
    return cast(list[object], value) if isinstance(value, list) else ()


def format_value(value: object) -> str:
    """Return a value for a message: whole if it is short.

    >>> format_value({"a": [1, "x"]}), format_value("a" * 200)[:12]
    ("{'a': [1, 'x']}", "'aaaaaaaaaaa")
    """
    text = repr(value)
    return text if len(text) <= 200 else _SHORT.repr(value)


def is_text(value: object) -> bool:
    """Return True for a string."""
    return isinstance(value, str)


def is_truth_value(value: object) -> bool:
    """Return True for true or false."""
    return isinstance(value, bool)


def is_object(value: object) -> bool:
    """Return True for a JSON object."""
    return isinstance(value, dict)


def is_rank(value: object) -> bool:
    """Return True for a whole number of at least 1."""
    return is_whole(value, least=1)


def is_size(value: object) -> bool:
    """Return True for a whole number of at least 0."""
    return is_whole(value, least=0)


def is_list_of(check: Check) -> Check:
    """Return a check for a list whose items all pass another.

    >>> is_list_of(is_size)([0, 3]), is_list_of(is_size)([-1]), is_list_of(is_size)("ab")
    (True, False, False)
    """
    return lambda value: isinstance(value, list) and all(map(check, cast(list[object], value)))


def is_object_of(check: Check) -> Check:
    """Return a check for an object whose values all pass another."""
    return lambda value: (
        isinstance(value, dict) and all(map(check, cast(dict[str, object], value).values()))
    )


def is_either(*checks: Check) -> Check:
    """Return a check for a value that passes one of several."""
    return lambda value: any(check(value) for check in checks)


def has_fields(needed: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    """Return a check for an object with these fields, and no others.

    >>> has_fields({"a": is_size}, {})({"a": 1}), has_fields({"a": is_size}, {})({"a": 1, "b": 2})
    (True, False)
    """
    checks = {**needed, **optional}

    def check(value: object) -> bool:
        if not isinstance(value, dict):
            return False
        fields = cast(dict[str, object], value)
        if not needed.keys() <= fields.keys() <= checks.keys():
            return False
        return all(checks[name](field) for name, field in fields.items())

    return check
