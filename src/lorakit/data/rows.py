"""Rows of training and evaluation data, checked.

The kind of a row is known by its keys, and every row of a source is of one kind:
`text` · `prompt, completion` · `messages` · `text, label` · `text_a, text_b, label`.
A row that does not fit is named by file and line, and nothing is returned.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lorakit.data.sources import Columns, Record, is_delimited, read_records
from lorakit.errors import DataError
from lorakit.text import add_hint, near_misses, plural

# The keys of each kind; a row is of the first kind whose keys it has.
KINDS = {
    "pair": ("text_a", "text_b", "label"),
    "labelled": ("text", "label"),
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}
KEYS = sorted(set[str]().union(*KINDS.values()))


@dataclass
class Rows:
    """Checked rows of one kind, and the place of each in its source.

    Attributes:
        kind: a key of KINDS.
        rows: the rows with the keys of the kind alone; `label` has the value that the file has.
        where: "file:line" or "file, row n" of each row.
        source: the source as it was named by the user.
        typed: True if the source tells texts from numbers, as JSON does and a .csv does not.
    """

    kind: str
    rows: list[dict[str, Any]]
    where: list[str]
    source: str
    typed: bool = False

    @property
    def repeated(self) -> int:
        """Number of rows that are equal to an earlier one."""
        return len(self.rows) - len({row_key(row) for row in self.rows})

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Iterable[int]) -> "Rows":
        """Return the rows of these positions."""
        positions = list(chosen)
        rows = [self.rows[i] for i in positions]
        where = [self.where[i] for i in positions]
        return Rows(self.kind, rows, where, self.source, self.typed)

    def content_hash(self) -> str:
        """Return a SHA-256 over the rows in their order."""
        digest = hashlib.sha256(self.kind.encode())
        for row in self.rows:
            digest.update(row_key(row).encode())
        return digest.hexdigest()


def row_key(row: Mapping[str, object]) -> str:
    """Return a text that is the same for equal rows, and no others.

    >>> row_key({"b": 1, "a": "x"})
    '{"a": "x", "b": 1}'
    """
    return json.dumps(row, sort_keys=True)


def read_rows(
    source: str, *, columns: Iterable[str] = (), quotes: bool | None = None, split: str = "train"
) -> Rows:
    """Read and check all rows of a source.

    Args:
        source: a file (.jsonl .json .csv .tsv .parquet .arrow .txt), `builtin:NAME`, or a hub id or
            folder that the `datasets` library loads.
        columns: `key=column` pairs where the file's own names differ; a column is a name, or a
            number (from 0) in a .csv or .tsv without a header.
        quotes: whether quotation marks wrap fields of a .csv or .tsv (default: of a .csv, yes; of a
            .tsv, no).
        split: of a builtin or of a data set of the hub: train or test.

    Raises:
        DataError: the source does not exist, is empty, or has rows that do not fit; each of these
            is named with its fault.
    """
    chosen = _parse_columns(columns)
    records = list(read_records(source, chosen, quotes, split))
    if not records:
        raise DataError(f"{source} holds no rows.")
    kind = _find_kind(source, records[0], chosen)
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    for record in records:
        if record.values is None:
            faults.append(f"{record.where}   {record.fault}")
            continue
        row = {key: record.values.get(chosen.get(key, key)) for key in KINDS[kind]}
        faults += [f"{record.where}   {fault}" for fault in _row_faults(row, chosen)]
        rows.append(row)
    if faults:
        counted = f"{plural(len(faults), 'fault')} in {plural(len(records), 'row')} of {source}"
        keys = ", ".join(KINDS[kind])
        raise DataError(f"{counted} (rows with {keys}).", faults, "Nothing was started.")
    where = [record.where for record in records]
    return Rows(kind, rows, where, source, typed=not is_delimited(source))


def _parse_columns(columns: Iterable[str]) -> dict[str, str | int]:
    """Return the column of each key; a number where the column is written as one."""
    split = (pair.partition("=") for pair in columns)
    chosen = {key: column for key, _, column in split}
    faults = [
        f"{key}={column}   {near_misses(key, KEYS)}".rstrip()
        for key, column in chosen.items()
        if key not in KEYS or not column
    ]
    if faults:
        raise DataError("Columns are named as key=column.", faults, f"Keys: {', '.join(KEYS)}.")
    return {key: int(column) if column.isdigit() else column for key, column in chosen.items()}


def _find_kind(source: str, first: Record, columns: Columns) -> str:
    """Return the kind of a source's rows, by the keys of its first row."""
    if first.values is None:
        raise DataError(f"The first row of {source} {first.fault}.")
    missing = [f"{key}={name}" for key, name in columns.items() if name not in first.values]
    if missing:
        problem = f"No such column in {source}: {', '.join(missing)}."
        raise _key_error(problem, first.values)
    for kind, keys in KINDS.items():
        if all(columns.get(key, key) in first.values for key in keys):
            return kind
    raise _key_error(f"The keys of the rows of {source} fit no kind of rows.", first.values)


def _key_error(problem: str, values: Mapping[Any, Any]) -> DataError:
    """Return an error that lists the keys of a row and those of every kind, with a near miss."""
    present = ", ".join(repr(key) for key in islice(values, 12))
    known = [f"known are {' + '.join(keys)}" for keys in KINDS.values()]
    hints = [near_misses(str(key), KEYS, 1) for key in values]
    hint = next((hint for hint in hints if hint), "")
    example = next(iter(values), "review")
    advice = add_hint(f"Name the columns, as in --columns text={example}.", hint)
    return DataError(problem, [f"its first row has {present}", *known], advice)


def _row_faults(row: Mapping[str, object], columns: Columns) -> Iterator[str]:
    """Yield the faults of a row's values."""
    for key, value in row.items():
        name = f"{key!r} (column {columns[key]!r})" if key in columns else repr(key)
        if value is None:
            yield f"{name} is missing"
        elif key == "label":
            if not _is_label(value):
                yield f"{name} is {value!r}, a word or a number is needed"
        elif key == "messages":
            yield from _message_faults(value)
        elif not isinstance(value, str):
            yield f"{name} is a {type(value).__name__}, text is needed"
        elif not value.strip() and key != "prompt":
            yield f"{name} is empty"


def _is_label(value: object) -> bool:
    """Return True for a finite number, a bool, or a text that is not empty."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | int | str) and bool(str(value).strip())


def _message_faults(messages: object) -> Iterator[str]:
    """Yield the first fault of a conversation, if it has one."""
    if not isinstance(messages, list) or not messages:
        yield "'messages' is not a list of turns"
        return
    for number, turn in enumerate(messages, 1):
        if not _is_turn(turn):
            yield f"turn {number} of 'messages' has no 'role' and 'content' as text"
            return
    if not any(turn["role"] == "assistant" and turn["content"].strip() for turn in messages):
        yield "'messages' has no assistant turn to learn from"


def _is_turn(turn: object) -> bool:
    if not isinstance(turn, dict):
        return False
    return isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
