"""Rows of records: converted as their layout says, checked, and packed where there are many."""

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lorakit.data.advice import advise_list, list_flags, suggest_columns
from lorakit.data.layouts import Layout, choose_columns, find_layout, rename
from lorakit.data.layouts.data_to_text import ENGLISH, SEEN
from lorakit.data.layouts.layout import KINDS, Row, RowFault, Values, is_given, keep_names
from lorakit.data.packed_rows import PackedRows, Places
from lorakit.data.records import Block, Record
from lorakit.data.tables import Columns
from lorakit.errors import NOT_STARTED, DataError
from lorakit.text import plural

MANY = 100_000  # rows that are kept in memory
# Keys whose values a layout has checked already.
CHECKED = {"messages", "tools", "trained", "needs_template", "labels", "tokens", "tags"}
TEXTS = ("text", "text_a", "text_b")
LABELS = ("label", "labels", "tags")
PAIR = ("text_a", "text_b")
# Kinds in which a prompt or an answer may be a list of turns.
WITH_TURNS = ("prompt", "preference", "rated")


@dataclass
class Collector:
    """Rows of records, and what was found wrong with them or left out.

    Attributes:
        layout: of the records.
        columns: the column of each key that the user named.
        categories: those that are wanted, of WebNLG.
        named: columns whose values are names of classes, or None without a label.
    """

    layout: Layout
    columns: Columns
    categories: str = "all"
    named: frozenset[str] = frozenset()
    records: int = 0
    first: Values = field(default_factory=dict[object, object])  # of the first record
    rows: list[Row] = field(default_factory=list[Row])
    packed: PackedRows | None = None  # those before, if there are many
    places: Places = field(default_factory=Places)  # of all rows
    faults: list[str] = field(default_factory=list[str])
    # True: it holds something
    unused: dict[str | int, bool] = field(default_factory=dict[str | int, bool])
    without_reference: int = 0
    half_empty: int = 0  # pairs of texts of which one is empty
    of_other_categories: int = 0
    languages: Counter[str] = field(default_factory=Counter[str])  # of the references
    is_part: bool = False  # True if there may be more

    @property
    def label_column(self) -> str | int | None:
        """The column of the file that holds the labels or the tags, if there is one."""
        name = self._label_name
        return None if name is None else self.columns.get(str(name), name)

    @cached_property
    def _label_name(self) -> str | int | None:
        """Its name in the layout."""
        keys = KINDS[self.layout.kind]
        has_labels = keys[-1] in LABELS and len(keys) == len(self.layout.columns)
        return self.layout.columns[-1] if has_labels else None

    def __len__(self) -> int:
        return len(self.rows) + (len(self.packed) if self.packed else 0)

    def collect(self, blocks: Iterable[Block], limit: int | None) -> None:
        """Add the rows of records, up to a limit."""
        for block in blocks:
            rows = self._convert_whole(block) if limit is None else None
            if rows is not None:
                self.records += len(rows)
                self.rows += rows
                self.places.extend(block.name, block.numbers)
            else:
                self._convert_each(block, limit)
            if self.is_part:
                break
            if self.packed or len(self.rows) > MANY:
                self._pack()

    def _convert_whole(self, block: Block) -> list[Row] | None:
        """Return the rows of records that are alike and have no fault; None for others.

        A column of many values is checked in less time than as many records.
        """
        values: Any = block.values
        if self.layout.convert is not keep_names or {*map(type, values)} != {dict}:
            return None
        names, *others = {*map(tuple, values)}
        columns = rename(dict(zip(names, names, strict=True)), self.columns)
        sources = [columns.get(column) for column in self.layout.columns]
        if others or None in sources:
            return None
        keys = KINDS[self.layout.kind]
        kept = [[record[source] for record in values] for source in sources]
        if not all(map(_are_faultless, keys, kept)):
            return None
        for name in self.layout.unused(columns):
            holds = any(is_given(record[columns[name]]) for record in values)
            self.unused[name] = self.unused.get(name, False) or holds
        self.first = self.first or values[0]
        if len(names) == len(keys) and sources == [*keys]:
            return values
        return [dict(zip(keys, row, strict=True)) for row in zip(*kept, strict=True)]

    def _convert_each(self, block: Block, limit: int | None) -> None:
        """Add the rows of each record, or its faults, up to a limit."""
        for record, number in zip(block.records(), block.numbers, strict=True):
            left = None if limit is None else limit - len(self)
            if left == 0:
                self.is_part = True
                return
            self.records += 1
            rows = self._convert(record)
            self.is_part = left is not None and len(rows) > left
            self.rows += rows[:left]
            self.places.extend(block.name, [number] * len(rows[:left]))

    def _convert(self, record: Record) -> list[Row]:
        """Return the rows of a record, after noting its faults."""
        where, values, fault = record
        if values is None:
            self.faults.append(f"{where}   {fault}")
            return []
        self.first = self.first or values
        values = rename(values, self.columns)
        for name in self.layout.unused(values):
            self.unused[name] = self.unused.get(name, False) or is_given(values[name])
        if not _is_chosen(values.get(self.layout.categories), self.categories):
            self.of_other_categories += 1
            return []
        if self.label_column in self.named and values.get(self._label_name) is None:
            self.without_reference += 1
            return []
        try:
            rows = list(self.layout.convert(self.layout, values))
        except RowFault as fault:
            self.faults.append(f"{where}   {fault}")
            return []
        self.without_reference += not rows
        self.languages.update(self.layout.languages(values))
        may_be_turns = self.layout.kind in WITH_TURNS
        for row in rows:
            self.half_empty += _is_half_empty(row)
            faults = _row_faults(row, self.columns, may_be_turns=may_be_turns)
            self.faults += [f"{where}   {fault}" for fault in faults]
        return rows

    def _pack(self) -> None:
        """Move the rows into a file."""
        self.packed = self.packed or PackedRows(self.layout.kind)
        self.packed.extend(self.rows)
        self.rows = []

    def _advise_texts(self) -> str:
        """Return the way to the labels that are to be predicted, where no row has one."""
        if self.label_column not in self.named:
            return ""
        pairs = zip(KINDS[self.layout.kind], self.layout.columns, strict=True)
        texts = {key: self.columns.get(key, column) for key, column in pairs if key in TEXTS}
        chosen = find_layout(self.first, texts)
        if chosen is None or chosen.kind == self.layout.kind:
            return f"To predict their labels, remove the column {self.label_column!r}."
        named = shlex.join(f"{key}={column}" for key, column in texts.items())
        return f"To predict their labels, name the texts alone: --columns {named}."

    def finish(self) -> tuple[Sequence[Row], Sequence[str]]:
        """Return all rows, and the place of each."""
        if not self.packed:
            return self.rows, list(self.places)
        return self.packed, self.places

    def notes(self) -> Iterator[str]:
        if self.unused:
            yield f"columns not used: {', '.join(_show_name(name) for name in self.unused)}"
        if self.without_reference:
            yield f"{plural(self.without_reference, 'row')} without a reference left out"
        if self.half_empty:
            yield f"{plural(self.half_empty, 'pair')} with one empty text"
        others = [name for name in self.languages if name != self.layout.language]
        if others or self.layout.language != ENGLISH:
            counts = [f"{plural(self.languages[name], 'text')} in {name}" for name in others]
            left_out = f", {' and '.join(counts)} left out" if counts else ""
            yield f"its texts in {self.layout.language} are used{left_out}"
        if self.of_other_categories:
            yield f"{plural(self.of_other_categories, 'row')} of other categories left out"

    def refuse(self, source: str) -> None:
        """Raise what is wrong with the records of a source, if anything is."""
        if self.faults:
            counted = (
                f"{plural(len(self.faults), 'fault')} in {plural(self.records, 'row')} of {source}"
            )
            named = ", ".join(str(column) for column in self.layout.columns)
            raise DataError(f"{counted} (rows with {named}).", self.faults, "Nothing was started.")
        given = [name for name, holds in self.unused.items() if holds]
        flags = list_flags(self.first) if self.layout.kind == "text" else []
        meaning = [name for name in given if self.layout.would_change(name) or name in flags]
        named_all = set(self.layout.columns) <= set(self.columns)
        if meaning and not named_all:
            raise DataError(
                f"{source} has columns that would change what is learned, and that rows in the "
                f"layout {self.layout.name} do not use.",
                [repr(name) for name in meaning],
                f"{_advise_choice(self.layout, self.first, flags)} {NOT_STARTED}",
            )
        if not len(self):
            problem = f"{source} holds no rows that can be used."
            raise DataError(problem, [*self.notes()], self._advise_texts())


def _show_name(name: str | int) -> str:
    """Return a column's name as it is told; in quotation marks if it is empty or has spaces."""
    if isinstance(name, int):
        return f"column {name}"
    return name if name and name == name.strip() else repr(name)


def _advise_choice(layout: Layout, first: Values, flags: Sequence[str]) -> str:
    """Return the flags that leave out the columns that are not used, and those that use them."""
    named = choose_columns(layout, first)
    if not named:
        return "To leave them out, remove them from the file."
    advice = f"To leave them out, name those to use: --columns {named}."
    if flags:
        return f"{advice} {advise_list(flags)}"
    used = suggest_columns(first) if layout.kind == "text" else ""
    if used in ("", named):
        return advice
    return f"{advice} To use them, name them too, as in --columns {used}."


def _is_chosen(category: object, categories: str) -> bool:
    """Return True if a row's category is among those that the user wants."""
    return categories == "all" or (category in SEEN) == (categories == "seen")


def _row_faults(row: Row, columns: Columns, *, may_be_turns: bool) -> Iterator[str]:
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
        elif not value.strip() and key != "prompt" and not _is_half_empty(row):
            yield f"{name} is empty"


def _is_half_empty(row: Row) -> bool:
    """Return True for a pair of texts of which one is empty: QQP has such."""
    texts = [row[key] for key in PAIR if isinstance(row.get(key), str)]
    return len(texts) == len(PAIR) and sum(bool(text.strip()) for text in texts) == 1


def _are_faultless(key: str, values: list[Any]) -> bool:
    """Return True if no value of a row's key has a fault; False if one may have."""
    types = {*map(type, values)}
    if key == "label":
        return types <= {str, int, float, bool} and all(map(_is_label, {*values}))
    return types == {str} and (key == "prompt" or all(map(str.strip, values)))


def _is_label(value: object) -> bool:
    """Return True for a finite number, a bool, or a text that is not empty."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | int | str) and bool(str(value).strip())
