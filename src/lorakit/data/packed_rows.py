"""Rows of a large source: in a temporary file, of which one row at a time is in memory."""

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, overload

Row = dict[str, Any]
BLOCK = 1000  # rows that are read at once
# Kinds whose rows hold texts and numbers alone: the order of their keys has no meaning.
FLAT = ("text", "prompt", "completion", "labelled", "pair", "unlabelled pair")
_sorted = json.JSONEncoder(sort_keys=True).encode
_in_order = json.JSONEncoder().encode


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
        self._starts = array("Q", [0])  # of each row, and the end of the last
        self._positions: Sequence[int] | None = None  # of the rows that were taken
        # True if a text may have half a surrogate pair: each is stored as an escape that begins so.
        self.may_be_broken = False

    def extend(self, rows: list[Row]) -> None:
        """Add rows at the end."""
        end = self._starts[-1]
        for text in self._encode(rows):
            end += len(text)
            self._file.content.write(text.encode())
            self._starts.append(end)

    def _encode(self, rows: list[Row]) -> Iterable[str]:
        """Return the JSON of each row."""
        if not self.is_flat:
            self.may_be_broken = True
            return map(_in_order, rows)
        # All at once is fast. They can be cut apart at `{"`, which no text in them holds: JSON
        # writes a backslash before a quotation mark.
        joined = _sorted(rows).removeprefix('[{"').removesuffix("}]")
        self.may_be_broken |= "\\ud" in joined
        return (f'{{"{row}}}' for row in joined.split('}, {"'))

    def __len__(self) -> int:
        return len(self._starts) - 1 if self._positions is None else len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        positions = self._all_positions()
        (text,) = self._read([positions[index]])
        return json.loads(text)

    def __iter__(self) -> Iterator[Row]:
        return map(json.loads, self.texts())

    def take(self, chosen: Iterable[int]) -> "PackedRows":
        """Return the rows of these positions, in the same file."""
        taken = PackedRows.__new__(PackedRows)
        taken.__dict__.update(self.__dict__)
        positions = self._all_positions()
        taken._positions = array("L", (positions[i] for i in chosen))
        return taken

    def texts(self) -> Iterator[bytes]:
        """Yield each row as it is stored, in ASCII."""
        positions = iter(self._all_positions())
        while block := list(islice(positions, BLOCK)):
            yield from self._read(block)

    def sizes(self) -> Iterator[int]:
        """Yield the number of bytes of each row as it is stored."""
        starts = self._starts
        return (starts[i + 1] - starts[i] for i in self._all_positions())

    def keys(self) -> Iterator[bytes]:
        """Yield for each row a text that is the same for equal rows."""
        if self.is_flat:
            return self.texts()
        return (_sorted(row).encode() for row in self)

    def _all_positions(self) -> Sequence[int]:
        return range(len(self)) if self._positions is None else self._positions

    def _read(self, positions: Sequence[int]) -> Iterator[bytes]:
        """Yield the stored texts of these positions; those of neighbours are read at once."""
        self._file.content.flush()
        low, high = min(positions), max(positions)
        if high - low >= 2 * len(positions):
            for position in positions:
                yield from self._read([position])
            return
        starts = self._starts[low : high + 2]
        first = starts[0]
        content = os.pread(self._file.content.fileno(), starts[-1] - first, first)
        texts = [content[start - first : end - first] for start, end in pairwise(starts)]
        for position in positions:
            yield texts[position - low]


class PackedPlaces(Sequence[str]):
    """Places of rows: a text and a number each, such as "file:line".

    >>> places = PackedPlaces()
    >>> places.extend(["a.jsonl:1", "a.jsonl:2", "b.arrow, row 7"])
    >>> places[2], places.take([1])[0]
    ('b.arrow, row 7', 'a.jsonl:2')
    """

    def __init__(self):
        self._names: list[str] = []
        self._of_name = array("L")
        self._numbers = array("Q")

    def extend(self, places: Iterable[str]) -> None:
        """Add places at the end."""
        for place in places:
            name = place.rstrip("0123456789")
            if not self._names or self._names[-1] != name:
                self._names.append(name)
            self._of_name.append(len(self._names) - 1)
            self._numbers.append(int(place[len(name) :]))

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

    def take(self, chosen: Iterable[int]) -> "PackedPlaces":
        """Return the places of these positions."""
        positions = list(chosen)
        taken = PackedPlaces()
        taken._names = self._names
        taken._of_name = array("L", (self._of_name[i] for i in positions))
        taken._numbers = array("Q", (self._numbers[i] for i in positions))
        return taken
