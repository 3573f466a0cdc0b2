"""Layouts of rows, as files have them: known by their columns, the first that fits.

Each file holds the layouts of one kind of data; layout.py says what a layout is.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.data.layouts import (
    chat,
    data_to_text,
    instructions,
    labels,
    plain,
    preferences,
    squad,
)
from lorakit.data.layouts.layout import KINDS, Layout, Values

# In this order: those with more columns before those whose columns are among theirs.
LAYOUTS = [
    *preferences.LAYOUTS,
    *chat.LAYOUTS,
    *squad.LAYOUTS,
    *data_to_text.LAYOUTS,
    *labels.LAYOUTS,
    *instructions.LAYOUTS,
    *plain.LAYOUTS,
    *labels.UNLABELLED,
]
HEADERLESS = labels.HEADERLESS
# Keys that `--columns` knows: of all kinds, and of the requests that become conversations.
KEYS = sorted({"input", "instruction", "output", "system", "tools"}.union(*KINDS.values()))


def find_layout(values: Values, columns: Mapping[str, str | int]) -> Layout | None:
    """Return the layout of a record; with columns that the user named, one that has them all.

    A column that is named although it has the name already is a choice: then a layout that needs
    no other column goes first.

    Args:
        values: of the first record.
        columns: the column of each key that the user named.
    """
    if not all(column in values for column in columns.values()):
        return None
    renamed = rename(values, columns)
    named = set(columns)
    found = [
        layout
        for layout in LAYOUTS
        if named <= {*layout.columns, *layout.optional} and layout.fits(renamed)
    ]
    if any(key == column for key, column in columns.items()):
        found.sort(key=lambda layout: not set(layout.columns) <= named)
    return found[0] if found else None


def find_headerless(values: Mapping[int, str]) -> Layout | None:
    """Return the published layout that the first line of a table without a header is in."""
    for layout in HEADERLESS:
        if layout.fits(values):
            return layout
    return None


def choose_columns(layout: Layout, values: Values) -> str:
    """Return pairs of `--columns` that choose a record's layout; empty if no pairs would."""
    keys: Sequence[str] = KINDS[layout.kind]
    if layout.kind == "instruction":
        keys = ("instruction", "output")
    if len(layout.columns) > len(keys):
        return ""
    pairs = dict(zip(keys, layout.columns, strict=False))
    chosen = find_layout(values, pairs)
    if chosen is None or chosen.kind != layout.kind:
        return ""
    return shlex.join(f"{key}={column}" for key, column in pairs.items())


def rename(values: Values, columns: Mapping[str, str | int]) -> dict[Any, Any]:
    """Return the values under the keys for which the user named their columns."""
    if not columns:
        return dict(values)
    taken = set(columns.values())
    others = {column: value for column, value in values.items() if column not in taken}
    return {**others, **{key: values.get(column) for key, column in columns.items()}}
