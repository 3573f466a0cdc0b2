"""Advice on the columns of a file whose layout is not known."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from lorakit.data.layouts import KEYS
from lorakit.text import add_hint, near_misses

# What columns are often called, by the key that they stand for.
OFTEN = {
    "prompt": "question query input source src context request user mr",
    "completion": "answer response output target reply summary ref tgt",
    "label": "class category stars rating sentiment intent topic target",
    "text": "review comment content body tweet sentence document message",
}
SUPPORTED = "text; prompt + completion; messages; text + label; text_a + text_b + label"
SHOWN, SAMPLE = 12, 40  # columns, characters


def advise_columns(values: Mapping[Any, Any], *, is_table: bool) -> tuple[list[str], str]:
    """Return what the columns of a row hold, and the flags that may name them.

    Args:
        values: of the first row.
        is_table: True if the columns have numbers too.

    >>> advise_columns({"review": "Well made, it lasts.", "stars": "5"}, is_table=False)[1]
    'Name the columns, as in --columns text=review label=stars.'
    """
    faults = [
        f"its first row has {_show(name, number if is_table else None)}: {_shorten(value)}"
        for number, (name, value) in enumerate(islice(values.items(), SHOWN))
    ]
    faults.append(f"known are, beside published layouts: {SUPPORTED}")
    example = " ".join(f"{key}={column}" for key, column in _guess(values).items())
    usual = " ".join(OFTEN.values()).split()
    hints = [near_misses(str(name), KEYS, 1) for name in values if name not in usual]
    advice = f"Name the columns, as in --columns {example}."
    if is_table:
        advice += " If the first line names no columns, use their numbers."
    return faults, add_hint(advice, next((hint for hint in hints if hint), ""))


def _show(name: object, number: int | None) -> str:
    """Return a column's name as it is shown, with its number in a table."""
    if isinstance(name, int):
        return f"column {name}"
    return repr(name) if number is None else f"column {number} {_shorten(repr(name))}"


def _shorten(value: object) -> str:
    """Return the beginning of a value, on one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= SAMPLE else f"{text[:SAMPLE]}…"


def _guess(values: Mapping[Any, Any]) -> dict[str, object]:
    """Return the column that each key may stand for: by its name, else by how long its text is."""
    named = _guess_by_name(values)
    for keys in (("prompt", "completion"), ("text", "label")):
        if all(key in named for key in keys):
            return {key: named[key] for key in keys}
    lengths = {name: len(value) for name, value in values.items() if isinstance(value, str)}
    longest = max(lengths, key=lambda name: lengths[name], default="review")
    guess = {"text": named.get("text", longest)}
    if "label" in named and named["label"] != guess["text"]:
        guess["label"] = named["label"]
    return guess


def _guess_by_name(values: Mapping[Any, Any]) -> dict[str, object]:
    """Return the columns that are called as they often are, each for one key."""
    named: dict[str, object] = {}
    for key, names in OFTEN.items():
        often = names.split()
        found = [name for name in values if str(name).lower() in often]
        unnamed = [name for name in found if name not in named.values()]
        if unnamed:
            named[key] = unnamed[0]
    return named
