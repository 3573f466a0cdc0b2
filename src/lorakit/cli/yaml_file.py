"""Settings in a YAML file, read in bounded time and memory."""

from pathlib import Path
from typing import Any

import yaml

from lorakit.errors import NOT_STARTED, SpecError
from lorakit.text import first_line, format_bytes

LARGEST = 1 << 19  # bytes of a file, and what its aliases may expand to
DEEPEST = 50  # levels
LONGEST = 2000  # characters of a value: numbers of more digits take much time, or cannot be printed
MOST_KEYS = 1000
# The reader in C is ten times as fast, where it is installed.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# AttributeError: of a tag such as !!timestamp with another text.
READ_ERRORS = (OSError, ValueError, AttributeError, OverflowError, yaml.YAMLError)


def read_yaml(path: str) -> dict[Any, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        SpecError: the file cannot be read, holds something else, has too many keys, or is too
            large, too deep or too large when its aliases are written out.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it has more than {format_bytes(LARGEST)}")
        text = content.decode("utf-8-sig")
        _check_size(text)
        values = yaml.load(text, Loader=LOADER)
    except READ_ERRORS as error:
        raise SpecError(
            f"{path} cannot be read: {first_line(error)}.", advice=NOT_STARTED
        ) from error
    if not isinstance(values, dict):
        raise SpecError(f"{path} has no `key: value` lines.", advice=NOT_STARTED)
    if len(values) > MOST_KEYS:
        raise SpecError(
            f"{path} has {len(values):,} keys; no command has {MOST_KEYS:,}.", advice=NOT_STARTED
        )
    if not all(isinstance(key, str) for key in values):
        raise SpecError(f"{path} has a key that is no text.", advice=NOT_STARTED)
    return values


def _check_size(text: str) -> None:
    """Check the depth of a YAML text, and its size with every alias written out.

    Nothing is built: a few lines of aliases of aliases can stand for billions of values.

    Raises:
        ValueError: it is too deep or too large.
        YAMLError: it is not YAML.
    """
    sizes: dict[str, int] = {}  # by anchor
    anchors: list[str | None] = []  # of the collections that are open
    totals = [0]  # of the document, and of these collections
    for event in yaml.parse(text, Loader=LOADER):
        anchor, size = getattr(event, "anchor", None), 0
        if isinstance(event, yaml.CollectionStartEvent):
            anchors.append(anchor)
            totals.append(1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = anchors.pop(), totals.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise ValueError(f"*{event.anchor} contains itself")
            size = sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + _measure(event.value)
        if anchor and size and not isinstance(event, yaml.AliasEvent):
            sizes[anchor] = size
        totals[-1] += size
        if len(anchors) > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        if totals[-1] > 2 * LARGEST:
            raise ValueError(f"with its aliases written out it exceeds {format_bytes(LARGEST)}")


def _measure(value: str) -> int:
    """Return the length of a value, or refuse one that is too long."""
    if len(value) > LONGEST:
        raise ValueError(f"a value has {len(value):,} characters, {LONGEST:,} are the limit")
    return len(value)
