"""Records of a source, in blocks: to check many at once is faster than one after the other."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

BLOCK = 1000  # records of a block at most, where they are made one by one


class Record(NamedTuple):
    """One record of a source.

    Attributes:
        where: "file:line" or "file, row n".
        values: the values by column; None where the record cannot be used.
        fault: the reason why it cannot, as it follows the place in a message.
    """

    where: str
    values: Mapping[Any, Any] | None
    fault: str = ""


class Found(NamedTuple):
    """The values of a record, or its fault, with the number of its place."""

    number: int
    values: Mapping[Any, Any] | None
    fault: str = ""


@dataclass
class Block:
    """Some records of a source, one after the other; at least one.

    Attributes:
        name: of the place of each, without its number: "file:" or "file, row ".
        numbers: of the places.
        values: as those of a record.
        faults: those of records, by their position in the block.
    """

    name: str
    numbers: Sequence[int]
    values: Sequence[Mapping[Any, Any] | None]
    faults: Mapping[int, str] = field(default_factory=dict[int, str])

    def found(self) -> Iterator[Found]:
        """Yield each record by its number."""
        pairs = zip(self.numbers, self.values, strict=True)
        for position, (number, values) in enumerate(pairs):
            yield Found(number, values, self.faults.get(position, ""))

    def records(self) -> Iterator[Record]:
        """Yield each record with its place."""
        for number, values, fault in self.found():
            yield Record(f"{self.name}{number}", values, fault)


def check_object(number: int, value: object) -> Found:
    """Return a value as those of a record; it is a fault unless it is an object."""
    if isinstance(value, Mapping):
        return Found(number, value)
    return Found(number, None, "is not an object with named values")


def number_rows(source: object, rows: Iterable[object]) -> Iterator[Block]:
    """Yield blocks of records; each row has a number as place."""
    return gather(f"{source}, row ", (check_object(*pair) for pair in enumerate(rows, 1)))


def gather(name: str, found: Iterable[Found]) -> Iterator[Block]:
    """Yield blocks of records; the first are small, so that a limit reads little."""
    remaining, size = iter(found), 1
    while some := list(islice(remaining, size)):
        yield make_block(name, some)
        size = min(2 * size, BLOCK)


def make_block(name: str, found: Sequence[Found]) -> Block:
    """Return a block of records, at least one."""
    numbers, values, faults = zip(*found, strict=True)
    return Block(name, numbers, values, {i: fault for i, fault in enumerate(faults) if fault})
