"""Rows of a large source: in a temporary file, of which one row at a time is in memory."""

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice, pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
Positions = NDArray[np.int64]
BLOCK = 1000  # rows that are read or written at once
# Kinds whose rows hold texts and numbers alone: the order of their keys has no meaning.
FLAT = ("text", "completion", "labelled", "pair", "unlabelled pair")
_sorted = json.JSONEncoder(sort_keys=True).encode
_in_order = json.JSONEncoder().encode
# JSON has a line break in no text, so here each is one that follows a value.
_in_lines = json.JSONEncoder(sort_keys=True, separators=(",\n", ": ")).encode


class _TemporaryFile:
    """A file that is closed, and so removed, when nothing refers to it any more."""

    def __init__(self):
        self.content = tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115
        weakref.finalize(self, self.content.close)


class PackedRows(Sequence[Row]):
    """Rows as JSON in a temporary file.

    Args:
        kind: of the rows, a key of KINDS.

    >>> rows = PackedRows("text")
    >>> rows.extend([{"text": "a"}, {"text": "b"}, {"text": "c"}])
    >>> rows[1], list(rows.take([0, 2]))
    ({'text': 'b'}, [{'text': 'a'}, {'text': 'c'}])
    """

    def __init__(self, kind: str):
        self.is_flat = kind in FLAT
        self._file = _TemporaryFile()
        self._starts = array("q", [0])  # of each row, and the end of the last
        self._hashes = array("q")  # of flat rows
        self._positions: Positions | None = None  # of the rows that were taken
        # True if a text may have half a surrogate pair: each is stored as an escape that begins so.
        self.may_be_broken = False

    def extend(self, rows: Iterable[Row]) -> None:
        """Add rows at the end."""
        remaining = iter(rows)
        while block := list(islice(remaining, BLOCK)):
            self._add(block)

    def _add(self, rows: list[Row]) -> None:
        texts = self._encode(rows)
        end = self._starts.pop()
        self._starts.extend(accumulate(map(len, texts), initial=end))
        joined = "".join(texts)
        self._file.content.write(joined.encode())
        if self.is_flat:
            self._hashes.extend(map(hash, texts))
            self.may_be_broken |= "\\ud" in joined
        else:
            self.may_be_broken = True

    def _encode(self, rows: list[Row]) -> list[str]:
        """Return the JSON of each row."""
        if not self.is_flat:
            return [*map(_in_order, rows)]
        # All at once is fast. A line break ends each row, and each value that is not its last.
        joined = _in_lines(rows)[1:-1]
        return joined.replace(',\n"', ', "').split(",\n")

    def __len__(self) -> int:
        return len(self._starts) - 1 if self._positions is None else len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        if self._positions is not None:
            position = int(self._positions[position])
        return json.loads(self._read(position, position + 1))

    def __iter__(self) -> Iterator[Row]:
        return map(json.loads, self.texts())

    def take(self, chosen: Iterable[int]) -> "PackedRows":
        """Return the rows of these positions, in the same file."""
        taken = PackedRows.__new__(PackedRows)
        taken.__dict__.update(self.__dict__)
        positions = np.fromiter(chosen, np.int64)
        taken._positions = self._all_positions()[positions]
        return taken

    def texts(self) -> Iterator[bytes]:
        """Yield each row as it is stored, in ASCII."""
        for first, stop in self._runs():
            content = self._read(first, stop)
            before = self._starts[first]
            for start, end in pairwise(self._starts[first : stop + 1]):
                yield content[start - before : end - before]

    def sizes(self) -> Positions:
        """Return the number of bytes of each row as it is stored: (rows,) int64."""
        sizes = np.diff(np.array(self._starts))
        return sizes[self._all_positions()]

    def hashes(self) -> Positions:
        """Return (rows,) int64, the same for equal rows while this process lasts."""
        if self.is_flat:
            return np.array(self._hashes)[self._all_positions()]
        hashes = (hash(_sorted(row)) for row in self)
        return np.fromiter(hashes, np.int64, len(self))

    def keys(self) -> Iterator[bytes]:
        """Yield texts that are, one after the other, the same for equal rows in this order."""
        if self.is_flat:
            return (self._read(first, stop) for first, stop in self._runs())
        return (_sorted(row).encode() for row in self)

    def _all_positions(self) -> Positions:
        return np.arange(len(self)) if self._positions is None else self._positions

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Yield the first row of each run of neighbours in the file, and the row after its last."""
        positions = self._all_positions()
        for start in range(0, len(positions), BLOCK):
            block = positions[start : start + BLOCK]
            ends = np.flatnonzero(np.diff(block) != 1)
            firsts = block[[0, *(ends + 1)]].tolist()
            lasts = block[[*ends, -1]].tolist()
            for first, last in zip(firsts, lasts, strict=True):
                yield first, last + 1

    def _read(self, first: int, stop: int) -> bytes:
        """Return the stored text of neighbours."""
        self._file.content.flush()
        start, end = self._starts[first], self._starts[stop]
        return os.pread(self._file.content.fileno(), end - start, start)


class Places(Sequence[str]):
    """Places of rows: a text and a number each, such as "file:line".

    >>> places = Places()
    >>> places.extend("a.jsonl:", [1, 2])
    >>> places.extend("b.arrow, row ", [7])
    >>> places[2], places.take([1])[0]
    ('b.arrow, row 7', 'a.jsonl:2')
    """

    def __init__(self):
        self._names: list[str] = []
        self._of_name = array("q")
        self._numbers = array("q")

    def extend(self, name: str, numbers: Sequence[int]) -> None:
        """Add places at the end, which differ in their numbers."""
        if not self._names or self._names[-1] != name:
            self._names.append(name)
        self._of_name += array("q", [len(self._names) - 1]) * len(numbers)
        self._numbers.extend(numbers)

    def add(self, place: str) -> None:
        """Add a place at the end."""
        name = place.rstrip("0123456789")
        number = place.removeprefix(name)
        self.extend(name, [int(number)])

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return f"{self._names[self._of_name[index]]}{self._numbers[index]}"

    def take(self, chosen: Iterable[int]) -> "Places":
        """Return the places of these positions."""
        positions = np.fromiter(chosen, np.int64)
        taken = Places()
        taken._names = self._names
        taken._of_name = array("q", np.array(self._of_name)[positions].tobytes())
        taken._numbers = array("q", np.array(self._numbers)[positions].tobytes())
        return taken
