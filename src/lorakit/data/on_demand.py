"""Examples of a large source: tokenised when a batch needs them, so that few are in memory."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, overload

from lorakit.data.encode import (
    Example,
    check_causal,
    check_text,
    encode_row,
    encode_texts,
    refuse_rows,
)
from lorakit.data.layouts.layout import Row
from lorakit.data.packed_rows import PackedRows
from lorakit.data.rows import Rows
from lorakit.data.templates import TemplateLimitError
from lorakit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = 256  # rows by which the length of the others is estimated
BLOCK = 1000  # texts that are tokenised at once
SHORTEST = 40  # bytes: a row that is shorter may hold nothing but an EOS token
MEASURED_BY_BYTES = ("text", "completion")  # kinds whose rows have no more tokens than bytes


@dataclass
class ExamplesOnDemand(Sequence[Example]):
    """Examples that are tokenised each time they are asked for.

    Attributes:
        rows: in which they are.
        encode: gives the examples of a row.
        numbers: position of the row of each example.
        parts: position of each example among those of its row.
        lengths: tokens of each example; estimated for a row that surely fits into one.
        longest: tokens that no example exceeds.
        cut_rows: number of examples that were cut.
    """

    rows: Rows
    encode: Callable[[Row], list[Example]]
    numbers: "array[int]" = field(default_factory=lambda: array("L"))
    parts: "array[int]" = field(default_factory=lambda: array("L"))
    lengths: "array[int]" = field(default_factory=lambda: array("L"))
    longest: int = 0
    cut_rows: int = 0

    def add(self, number: int, part: int, length: int, longest: int) -> None:
        """Add an example."""
        self.numbers.append(number)
        self.parts.append(part)
        self.lengths.append(length)
        self.longest = max(self.longest, longest)

    def add_measured(self, number: int, encoded: Sequence[Example]) -> list[int]:
        """Add the examples of a row; return its position for each in which nothing is trained."""
        untrained: list[int] = []
        for part, example in enumerate(encoded):
            length = len(example.ids)
            if example.trained:
                self.add(number, part, length, length)
                self.cut_rows += example.cut > 0
            else:
                untrained.append(number)
        return untrained

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = self.numbers[index]
        example = self.encode(self.rows.rows[number])[self.parts[index]]
        example.row = number
        return example


def encode_on_demand(
    rows: Rows, tokenizer: "PreTrainedTokenizerBase", max_length: int, loss_on: str
) -> ExamplesOnDemand:
    """Return the examples of packed rows for language modelling.

    A row that surely fits into `max_length` is not tokenised here, and the length of its example
    is estimated. Every other row is tokenised once, because it may be split, cut or refused.

    Args:
        rows: packed rows of a kind that `encode_causal` takes.
        tokenizer: as for `encode_causal`.
        max_length: as for `encode_causal`.
        loss_on: as for `encode_causal`.

    Raises:
        DataError: as `encode_causal` does.
    """
    check_causal(rows, tokenizer)
    _check_broken(rows)

    def encode(row: Row) -> list[Example]:
        return encode_row(rows.kind, row, tokenizer, max_length, loss_on)

    examples = ExamplesOnDemand(rows, encode)
    tokens_per_byte = _estimate(rows, encode)
    is_flat = rows.kind in MEASURED_BY_BYTES
    errors: dict[int, DataError] = {}
    untrained: list[int] = []
    sizes = enumerate(_stored(rows).sizes())
    while block := list(islice(sizes, BLOCK)):
        longer = [
            number for number, size in block if not is_flat or not SHORTEST <= size <= max_length
        ]
        encoded = dict(_encode_block(rows, longer, tokenizer, max_length, encode))
        for number, size in block:
            found = encoded.get(number)
            if found is None:
                examples.add(number, 0, ceil(size * tokens_per_byte), size)
            elif isinstance(found, DataError):
                errors[number] = found
            else:
                untrained += examples.add_measured(number, found)
    refuse_rows(rows, errors, untrained, max_length)
    return examples


def _encode_block(
    rows: Rows,
    chosen: Sequence[int],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    encode: Callable[[Row], list[Example]],
) -> Iterator[tuple[int, list[Example] | DataError]]:
    """Yield the examples of rows with their positions, or why a row has none."""
    if not chosen:
        return
    taken = list(_stored(rows).take(chosen))
    if rows.kind == "text":
        texts = [row["text"] for row in taken]
        yield from zip(chosen, encode_texts(texts, tokenizer, max_length), strict=True)
        return
    for number, row in zip(chosen, taken, strict=True):
        try:
            yield number, encode(row)
        except TemplateLimitError:
            raise
        except DataError as error:
            yield number, error


def _check_broken(rows: Rows) -> None:
    """Refuse rows with half a surrogate pair."""
    stored = _stored(rows)
    if stored.may_be_broken:
        texts = enumerate(stored.texts())
        suspects = rows.take(number for number, text in texts if b"\\ud" in text)
        check_text(suspects.where, suspects.rows)


def _stored(rows: Rows) -> PackedRows:
    if not isinstance(rows.rows, PackedRows):
        raise TypeError("rows that are tokenised on demand are packed")
    return rows.rows


def _estimate(rows: Rows, encode: Callable[[Row], list[Example]]) -> float:
    """Return the most tokens for a byte that a sample of the rows has."""
    if rows.kind not in MEASURED_BY_BYTES:
        return 1.0
    stored = _stored(rows).take(range(0, len(rows), ceil(len(rows) / SAMPLE)))
    ratios: list[float] = []
    for row, text in zip(stored, stored.texts(), strict=True):
        ratios.append(sum(len(example.ids) for example in encode(row)) / len(text))
    return min(1.0, max(ratios))


def count_tokens(examples: Sequence[Example]) -> Sequence[int]:
    """Return the tokens of each example; estimated ones of those that are made on demand."""
    if isinstance(examples, ExamplesOnDemand):
        return examples.lengths
    return [example.size for example in examples]


def find_longest(examples: Sequence[Example]) -> int:
    """Return the number of tokens that no example exceeds."""
    if isinstance(examples, ExamplesOnDemand):
        return examples.longest
    return max(example.size for example in examples)


def count_cut(examples: Sequence[Example]) -> int:
    """Return the number of examples that were cut."""
    if isinstance(examples, ExamplesOnDemand):
        return examples.cut_rows
    return sum(example.cut > 0 for example in examples)
