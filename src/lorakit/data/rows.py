"""Rows of training and evaluation data, checked.

The layout of a source is known by the columns of its first row, and says of which kind its rows
are: a text, a prompt with its completion, a conversation, a text with its label and so on.
A row that does not fit is named by file and line, and nothing is returned.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorakit.data.advice import advise_columns
from lorakit.data.class_names import join_classes, put_names
from lorakit.data.collect import Collector
from lorakit.data.layouts import KEYS, Layout, find_headerless, find_layout
from lorakit.data.layouts.layout import Row
from lorakit.data.packed_rows import PackedRows, Places
from lorakit.data.records import Record
from lorakit.data.sources import Columns, Reading, list_files, open_source
from lorakit.errors import NOT_STARTED, DataError
from lorakit.text import add_hint, near_misses, plural

CATEGORIES = ("all", "seen", "unseen")


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
        is_part: True if the source was not read to its end.
        classes: all names of the labels or tags in their order, where the source has one.
    """

    kind: str
    rows: Sequence[Row]
    where: Sequence[str]
    source: str
    typed: bool = False
    layout: str = ""
    is_measured: bool = False
    notes: tuple[str, ...] = ()
    is_part: bool = False
    classes: tuple[str, ...] = ()

    @property
    def repeated(self) -> int:
        """Number of rows that are equal to an earlier one."""
        hashes = self.sorted_hashes
        return int((hashes[1:] == hashes[:-1]).sum())

    def count_shared(self, others: "Rows") -> int:
        """Return the number of rows that are equal to one of the others."""
        places = np.searchsorted(others.sorted_hashes, self.sorted_hashes)
        found = others.sorted_hashes[places.clip(max=len(others) - 1)]
        return int((found == self.sorted_hashes).sum())

    def __len__(self) -> int:
        return len(self.rows)

    def describe(self) -> str:
        """Return one line on what was read.

        >>> Rows("text", [{"text": "a"}], ["a.txt:1"], "a.txt", layout="text").describe()
        'data: 1 row of a.txt: text'
        """
        told = "; ".join([self.layout or self.kind, *self.notes])
        counted = f"{'the first ' if self.is_part else ''}{plural(len(self), 'row')}"
        return f"data: {counted} of {self.source}: {told}"

    def take(self, chosen: Iterable[int]) -> "Rows":
        """Return the rows of these positions."""
        positions = list(chosen)
        return replace(self, rows=_take(self.rows, positions), where=_take(self.where, positions))

    @cached_property
    def sorted_hashes(self) -> NDArray[np.int64]:
        """(rows,) int64 in order of size, the same for equal rows while this process lasts."""
        if isinstance(self.rows, PackedRows):
            return np.sort(self.rows.hashes())
        hashes = (hash(row_key(row)) for row in self.rows)
        return np.sort(np.fromiter(hashes, np.int64, len(self)))

    def content_hash(self) -> str:
        """Return a SHA-256 over the rows in their order."""
        digest = hashlib.sha256(self.kind.encode())
        if isinstance(self.rows, PackedRows):
            keys = self.rows.keys()
        else:
            keys = (row_key(row).encode() for row in self.rows)
        for key in keys:
            digest.update(key)
        return digest.hexdigest()


def _take(values: Sequence[Any], positions: Sequence[int]) -> Sequence[Any]:
    if isinstance(values, PackedRows | Places):
        return values.take(positions)
    return [values[i] for i in positions]


def row_key(row: Mapping[str, object]) -> str:
    """Return a text that is the same for equal rows, and no others.

    >>> row_key({"b": 1, "a": "x"})
    '{"a": "x", "b": 1}'
    """
    return json.dumps(row, sort_keys=True)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several data sets, one after the other.

    Raises:
        DataError: their rows are of different kinds; the layout of each is named.

    >>> parts = [Rows("text", [{"text": name}], [f"{name}:1"], name) for name in "ab"]
    >>> join_rows(parts).where, join_rows(parts).source
    (['a:1', 'b:1'], 'a, b')
    """
    if len(parts) == 1:
        return parts[0]
    if len({(part.kind, part.is_measured) for part in parts}) > 1:
        raise DataError(
            "The data sets are in layouts that cannot be trained on together.",
            [f"{part.source}   {part.layout}" for part in parts],
            f"Give data of one kind, or name columns with --columns. {NOT_STARTED}",
        )
    _check_names(parts)
    rows, where = _concatenate(parts)
    notes: list[str] = []
    for part in parts:
        notes += [f"{part.source}: {note}" for note in part.notes]
    return Rows(
        parts[0].kind,
        rows,
        where,
        ", ".join(part.source for part in parts),
        typed=all(part.typed for part in parts),
        layout=" and ".join(dict.fromkeys(part.layout for part in parts)),
        is_measured=parts[0].is_measured,
        notes=tuple(notes),
        is_part=any(part.is_part for part in parts),
        classes=join_classes([part.classes for part in parts]),
    )


def _check_names(parts: Sequence[Rows]) -> None:
    """Refuse labels of one data set that are no class of another, which names its classes.

    Raises:
        DataError: numbers stand beside names, for example; each such data set is named.
    """
    names = set(chain.from_iterable(part.classes for part in parts))
    unnamed = [part for part in parts if not part.classes and part.kind in ("labelled", "pair")]
    faults: list[str] = []
    for part in unnamed if names else ():
        others = dict.fromkeys(str(row["label"]) for row in part.rows)
        strange = [label for label in others if label.strip() not in names]
        faults += [f"{part.source}   {label!r}" for label in strange[:1]]
    if faults:
        raise DataError(
            "The data sets name their classes differently: "
            f"{', '.join(sorted(names)[:5])} in one of them.",
            faults,
            f"Write the same names into all of them. {NOT_STARTED}",
        )


def _concatenate(parts: Sequence[Rows]) -> tuple[Sequence[Row], Sequence[str]]:
    """Return all rows and their places; packed if those of one part are."""
    rows = chain.from_iterable(part.rows for part in parts)
    where = chain.from_iterable(part.where for part in parts)
    if not any(isinstance(part.rows, PackedRows) for part in parts):
        return list(rows), list(where)
    packed, places = PackedRows(parts[0].kind), Places()
    packed.extend(rows)
    for place in where:
        places.add(place)
    return packed, places


def read_for(
    settings: DataSettings,
    sources: str | Sequence[str],
    split: str = "train",
    limit: int | None = None,
) -> Rows:
    """Read the rows of one or more sources as settings say; no more than `limit`."""
    return join_rows(read_parts(settings, sources, split, limit))


def read_parts(
    settings: DataSettings,
    sources: str | Sequence[str],
    split: str = "train",
    limit: int | None = None,
) -> list[Rows]:
    """Read the rows of each source as settings say; all together no more than `limit`."""

    def read(source: str, limit: int | None) -> Rows:
        return read_rows(
            source,
            columns=settings.columns,
            quotes=settings.quotes,
            separator=settings.separator,
            categories=settings.categories,
            split=split,
            limit=limit,
        )

    return _read_each([sources] if isinstance(sources, str) else sources, read, limit)


def _read_each(
    sources: Sequence[str], read: Callable[[str, int | None], Rows], limit: int | None
) -> list[Rows]:
    """Return the rows of each source, until there are as many as the limit."""
    parts: list[Rows] = []
    for source in sources:
        left = None if limit is None else limit - sum(len(part) for part in parts)
        if left == 0:
            parts[-1] = replace(parts[-1], is_part=True)
            break
        parts.append(read(source, left))
    return parts


def read_rows(
    source: str,
    *,
    columns: Iterable[str] = (),
    quotes: bool | None = None,
    separator: str = "auto",
    categories: str = "all",
    split: str = "train",
    limit: int | None = None,
) -> Rows:
    """Read and check the rows of a source.

    Args:
        source: a file (.jsonl .json .csv .tsv .parquet .arrow .txt, also with .gz), a folder of
            such files, `builtin:NAME`, or a hub id or folder that the `datasets` library loads.
        columns: `key=column` pairs where the file's own names differ; a column is a name, or a
            number (from 0) in a table without a header.
        quotes: whether quotation marks wrap fields of a table; None to find it out.
        separator: between the fields of a table: comma, tab, semicolon, bar or auto.
        categories: of WebNLG: those of its training data (seen), the others (unseen), or all.
        split: of a builtin or of a data set of the hub: train or test.
        limit: number of rows after which nothing more is read.

    Raises:
        DataError: the source does not exist, is empty, or has rows that do not fit; each of these
            is named with its fault.
    """
    chosen = _parse_columns(columns)
    reading = Reading(chosen, quotes, separator, whole=limit is None)
    files = list_files(source, split)
    if files:

        def read(file: str, limit: int | None) -> Rows:
            return _read_source(file, reading, split, categories, limit)

        return replace(join_rows(_read_each(files, read, limit)), source=source)
    return _read_source(source, reading, split, categories, limit)


def _read_source(
    source: str, reading: Reading, split: str, categories: str, limit: int | None
) -> Rows:
    """Read and check the rows of one source."""
    chosen = reading.columns
    opened = open_source(source, reading, split)
    blocks = put_names(opened.blocks, opened.names) if opened.names else iter(opened.blocks)
    block = next(blocks, None)
    if block is None:
        raise DataError(f"{source} holds no rows.")
    first = next(block.records())
    chosen = _names_of_numbers(chosen, first)
    layout = _find_layout(source, first, chosen, is_table=not opened.typed)
    _check_categories(source, layout, categories)
    collector = Collector(layout, chosen, categories, frozenset(opened.names))
    collector.collect(chain([block], blocks), limit)
    collector.refuse(source)
    rows, places = collector.finish()
    return Rows(
        layout.kind,
        rows,
        places,
        source,
        typed=opened.typed,
        layout=layout.name,
        is_measured=layout.regression,
        notes=(*opened.notes, *collector.notes()),
        is_part=collector.is_part,
        classes=opened.names.get(str(collector.label_column), ()),
    )


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
    return layout.choose_language(values)


def _check_categories(source: str, layout: Layout, categories: str) -> None:
    if categories != "all" and not layout.categories:
        raise DataError(
            f"--categories chooses among the categories of WebNLG, but {source} is in the layout "
            f"{layout.name}.",
            advice=NOT_STARTED,
        )
