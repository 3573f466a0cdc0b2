"""Rows of training and evaluation data, checked.

The layout of a source is known by the columns of its first row, and says of which kind its rows
are: a text, a prompt with its completion, a conversation, a text with its label and so on.
A row that does not fit is named by file and line, and nothing is returned.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lorakit.data.advice import advise_columns, suggest_columns
from lorakit.data.documents import Record
from lorakit.data.layouts import (
    KEYS,
    Layout,
    choose_columns,
    find_headerless,
    find_layout,
    rename,
)
from lorakit.data.layouts.data_to_text import SEEN
from lorakit.data.layouts.layout import Row, RowFault, is_given
from lorakit.data.sources import Columns, Reading, open_source
from lorakit.errors import NOT_STARTED, DataError
from lorakit.text import add_hint, near_misses, plural

CATEGORIES = ("all", "seen", "unseen")
# Keys whose values a layout has checked already.
CHECKED = {"messages", "tools", "trained", "needs_template", "labels", "tokens", "tags"}
# Kinds in which a prompt or an answer may be a list of turns.
WITH_TURNS = ("prompt", "preference", "rated")


class DataSettings(Protocol):
    """Settings that say how a source is read; the fields are those of `read_rows`."""

    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def quotes(self) -> bool | None: ...
    @property
    def separator(self) -> str: ...
    @property
    def categories(self) -> str: ...


@dataclass
class Rows:
    """Checked rows of one kind, and the place of each in its source.

    Attributes:
        kind: a key of KINDS.
        rows: the rows with the keys of the kind; `label` has the value that the file has.
        where: "file:line" or "file, row n" of each row.
        source: the source as it was named by the user.
        typed: True if the source tells texts from numbers, as JSON does and a .csv does not.
        layout: what the source is in, as it is told.
        is_measured: True if the layout says that the labels are measured values.
        notes: how it was read, and what of it was not used.
    """

    kind: str
    rows: list[dict[str, Any]]
    where: list[str]
    source: str
    typed: bool = False
    layout: str = ""
    is_measured: bool = False
    notes: tuple[str, ...] = ()

    @property
    def repeated(self) -> int:
        """Number of rows that are equal to an earlier one."""
        return len(self.rows) - len({row_key(row) for row in self.rows})

    def __len__(self) -> int:
        return len(self.rows)

    def describe(self) -> str:
        """Return one line on what was read.

        >>> Rows("text", [{"text": "a"}], ["a.txt:1"], "a.txt", layout="text").describe()
        'data: 1 row of a.txt: text'
        """
        told = "; ".join([self.layout or self.kind, *self.notes])
        return f"data: {plural(len(self), 'row')} of {self.source}: {told}"

    def take(self, chosen: Iterable[int]) -> "Rows":
        """Return the rows of these positions."""
        positions = list(chosen)
        rows = [self.rows[i] for i in positions]
        where = [self.where[i] for i in positions]
        return replace(self, rows=rows, where=where)

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


def read_for(settings: DataSettings, source: str, split: str = "train") -> Rows:
    """Read the rows of a source as settings say."""
    return read_rows(
        source,
        columns=settings.columns,
        quotes=settings.quotes,
        separator=settings.separator,
        categories=settings.categories,
        split=split,
    )


def read_rows(
    source: str,
    *,
    columns: Iterable[str] = (),
    quotes: bool | None = None,
    separator: str = "auto",
    categories: str = "all",
    split: str = "train",
) -> Rows:
    """Read and check all rows of a source.

    Args:
        source: a file (.jsonl .json .csv .tsv .parquet .arrow .txt, also with .gz),
            `builtin:NAME`, or a hub id or folder that the `datasets` library loads.
        columns: `key=column` pairs where the file's own names differ; a column is a name, or a
            number (from 0) in a table without a header.
        quotes: whether quotation marks wrap fields of a table; None to find it out.
        separator: between the fields of a table: comma, tab, semicolon, bar or auto.
        categories: of WebNLG: those of its training data (seen), the others (unseen), or all.
        split: of a builtin or of a data set of the hub: train or test.

    Raises:
        DataError: the source does not exist, is empty, or has rows that do not fit; each of these
            is named with its fault.
    """
    chosen = _parse_columns(columns)
    opened = open_source(source, Reading(chosen, quotes, separator), split)
    records = list(opened.records)
    if not records:
        raise DataError(f"{source} holds no rows.")
    chosen = _names_of_numbers(chosen, records[0])
    layout = _find_layout(source, records[0], chosen, is_table=not opened.typed)
    _check_categories(source, layout, categories)
    collected = _collect(records, layout, chosen, categories)
    named_all = set(layout.columns) <= set(chosen)
    collected.refuse(source, layout, records, may_drop=named_all)
    return Rows(
        layout.kind,
        collected.rows,
        collected.where,
        source,
        typed=opened.typed,
        layout=layout.name,
        is_measured=layout.regression,
        notes=(*opened.notes, *collected.notes()),
    )


@dataclass
class _Collected:
    """Rows of the records, and what was found wrong with them or left out."""

    rows: list[Row] = field(default_factory=list[Row])
    where: list[str] = field(default_factory=list[str])
    faults: list[str] = field(default_factory=list[str])
    # True: it holds something
    unused: dict[str | int, bool] = field(default_factory=dict[str | int, bool])
    without_reference: int = 0
    of_other_categories: int = 0

    def notes(self) -> Iterator[str]:
        if self.unused:
            yield f"columns not used: {', '.join(_show_name(name) for name in self.unused)}"
        if self.without_reference:
            yield f"{plural(self.without_reference, 'row')} without a reference left out"
        if self.of_other_categories:
            yield f"{plural(self.of_other_categories, 'row')} of other categories left out"

    def refuse(
        self, source: str, layout: Layout, records: Sequence[Record], *, may_drop: bool
    ) -> None:
        """Raise what is wrong with the records, if anything is.

        Args:
            source: as the user named it.
            layout: of its rows.
            records: all of them.
            may_drop: True if the user named each column that is to be used.
        """
        if self.faults:
            faults, rows = plural(len(self.faults), "fault"), plural(len(records), "row")
            counted = f"{faults} in {rows} of {source}"
            named = ", ".join(str(column) for column in layout.columns)
            raise DataError(f"{counted} (rows with {named}).", self.faults, "Nothing was started.")
        given = [name for name, holds in self.unused.items() if holds]
        meaning = [name for name in given if layout.would_change(name)]
        if meaning and not may_drop:
            raise DataError(
                f"{source} has columns that would change what is learned, and that rows in the "
                f"layout {layout.name} do not use.",
                [repr(name) for name in meaning],
                f"{_advise_choice(layout, records[0])} {NOT_STARTED}",
            )
        if not self.rows:
            raise DataError(f"{source} holds no rows that can be used.", [*self.notes()])


def _show_name(name: str | int) -> str:
    """Return a column's name as it is told; in quotation marks if it is empty or has spaces."""
    if isinstance(name, int):
        return f"column {name}"
    return name if name and name == name.strip() else repr(name)


def _advise_choice(layout: Layout, first: Record) -> str:
    """Return the flags that leave out the columns that are not used, and those that use them."""
    values = first.values or {}
    named = choose_columns(layout, values)
    if not named:
        return "To leave them out, remove them from the file."
    advice = f"To leave them out, name those to use: --columns {named}."
    used = suggest_columns(values) if layout.kind == "text" else ""
    if used in ("", named):
        return advice
    return f"{advice} To use them, name them too, as in --columns {used}."


def _collect(
    records: Iterable[Record], layout: Layout, columns: Columns, categories: str
) -> _Collected:
    """Return the rows of all records."""
    collected = _Collected()
    for record in records:
        if record.values is None:
            collected.faults.append(f"{record.where}   {record.fault}")
            continue
        values = rename(record.values, columns)
        for name in layout.unused(values):
            collected.unused[name] = collected.unused.get(name, False) or is_given(values[name])
        if not _is_chosen(values.get(layout.categories), categories):
            collected.of_other_categories += 1
            continue
        try:
            rows = list(layout.convert(layout, values))
        except RowFault as fault:
            collected.faults.append(f"{record.where}   {fault}")
            continue
        collected.without_reference += not rows
        for row in rows:
            faults = _row_faults(row, columns, may_be_turns=layout.kind in WITH_TURNS)
            collected.faults += [f"{record.where}   {fault}" for fault in faults]
        collected.rows += rows
        collected.where += [record.where] * len(rows)
    return collected


def _is_chosen(category: object, categories: str) -> bool:
    """Return True if a row's category is among those that the user wants."""
    return categories == "all" or (category in SEEN) == (categories == "seen")


def _parse_columns(columns: Iterable[str]) -> dict[str, str | int]:
    """Return the column of each key; a number where the column is written as one."""
    split = (pair.partition("=") for pair in columns)
    chosen = {key: column for key, _, column in split}
    faults = [
        add_hint(f"{key}={column}", near_misses(key, KEYS))
        for key, column in chosen.items()
        if key not in KEYS or not column
    ]
    if faults:
        raise DataError("Columns are named as key=column.", faults, f"Keys: {', '.join(KEYS)}.")
    return {key: int(column) if column.isdigit() else column for key, column in chosen.items()}


def _names_of_numbers(columns: Columns, first: Record) -> Columns:
    """Return the columns; by name where a number is the name, as in JSON that pandas wrote."""
    values = first.values or {}
    named = {key: str(column) for key, column in columns.items() if column not in values}
    return {**columns, **{key: name for key, name in named.items() if name in values}}


def _find_layout(source: str, first: Record, columns: Columns, *, is_table: bool) -> Layout:
    """Return the layout of a source's rows, by the columns of its first row."""
    values = first.values
    if values is None:
        raise DataError(f"The first row of {source} {first.fault}.")
    missing = [f"{key}={name}" for key, name in columns.items() if name not in values]
    if missing:
        problem = f"No such column in {source}: {', '.join(missing)}."
        raise DataError(problem, *advise_columns(values, is_table=is_table))
    layout = None if columns else find_headerless(values)
    layout = layout or find_layout(values, columns)
    if layout is None:
        problem = f"The columns of {source} are those of no known layout."
        raise DataError(problem, *advise_columns(values, is_table=is_table))
    return layout


def _check_categories(source: str, layout: Layout, categories: str) -> None:
    if categories != "all" and not layout.categories:
        raise DataError(
            f"--categories chooses among the categories of WebNLG, but {source} is in the layout "
            f"{layout.name}.",
            advice=NOT_STARTED,
        )


def _row_faults(
    row: Mapping[str, object], columns: Columns, *, may_be_turns: bool
) -> Iterator[str]:
    """Yield the faults of a row's values."""
    for key, value in row.items():
        name = f"{key!r} (column {columns[key]!r})" if key in columns else repr(key)
        if value is None:
            yield f"{name} is missing"
        elif key == "label":
            if not _is_label(value):
                yield f"{name} is {value!r}, a word or a number is needed"
        elif key in CHECKED or (may_be_turns and isinstance(value, list)):
            continue
        elif not isinstance(value, str):
            yield f"{name} is a {type(value).__name__}, text is needed"
        elif not value.strip() and key != "prompt":
            yield f"{name} is empty"


def _is_label(value: object) -> bool:
    """Return True for a finite number, a bool, or a text that is not empty."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | int | str) and bool(str(value).strip())
