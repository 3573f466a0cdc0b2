"""Examples of a large source: tokenised when a batch needs them, so that few are in memory."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from lorakit.data.encode import (
    Example,
    check_causal,
    check_text,
    encode_many,
    encode_row,
    refuse_rows,
)
from lorakit.data.labels import LABELLED, encode_block, list_targets, require_labels
from lorakit.data.layouts.layout import Row
from lorakit.data.packed_rows import PackedRows
from lorakit.data.rows import Rows
from lorakit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The examples of rows by their positions, or why a row has none.
Encoded = Iterable[tuple[int, list[Example] | DataError]]
SAMPLE = 256  # rows by which the length of the others is estimated
BLOCK = 1000  # rows that are looked at together
SHORTEST = 40  # bytes: a row that is shorter may hold nothing but an EOS token
# Kinds whose rows have no more tokens than bytes.
MEASURED_BY_BYTES = ("text", "completion", *LABELLED)


@dataclass
class ExamplesOnDemand(Sequence[Example]):
    """Examples that are tokenised each time they are asked for.

    Attributes:
        rows: in which they are.
        encode: gives the examples of a row.
        targets: class index or value of each row; empty for language modelling.
        numbers: position of the row of each example.
        parts: position of each example among those of its row.
        lengths: tokens of each example; estimated for a row that surely fits into one.
        longest: tokens that no example exceeds.
        cut_rows: number of examples that were cut.
    """

    rows: Rows
    encode: Callable[[Row], list[Example]]
    targets: Sequence[float | int] = ()
    numbers: "array[int]" = field(default_factory=lambda: array("q"))
    parts: "array[int]" = field(default_factory=lambda: array("q"))
    lengths: "array[int]" = field(default_factory=lambda: array("q"))
    longest: int = 0
    cut_rows: int = 0

    def add(self, number: int, part: int, length: int, longest: int) -> None:
        """Add an example."""
        self.numbers.append(number)
        self.parts.append(part)
        self.lengths.append(length)
        self.longest = max(self.longest, longest)

    def add_estimated(self, first: int, lengths: NDArray[np.int64], longest: int) -> None:
        """Add the only example of each of these rows, which are neighbours."""
        self.numbers.extend(range(first, first + len(lengths)))
        self.parts += array("q", [0]) * len(lengths)
        self.lengths.extend(lengths.tolist())
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
        if self.targets:
            example.target = self.targets[number]
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

    def encode_all(chosen: Sequence[int]) -> Encoded:
        taken = _stored(rows).take(chosen)
        found = encode_many(rows.kind, taken, tokenizer, max_length, loss_on)
        return zip(chosen, found, strict=True)

    is_flat = rows.kind in MEASURED_BY_BYTES
    sizes = range(SHORTEST, max_length + 1) if is_flat else range(0)
    examples = ExamplesOnDemand(rows, encode)
    errors, untrained = _add_all(examples, sizes, encode_all)
    refuse_rows(rows, errors, untrained, max_length)
    return examples


def encode_labelled_on_demand(
    rows: Rows,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    labels: Sequence[str] | None,
) -> ExamplesOnDemand:
    """Return the examples of packed rows with labels.

    A row that surely fits into `max_length` is not tokenised here, and the length of its example
    is estimated.

    Args:
        rows: packed rows of a kind in LABELLED.
        tokenizer: as for `encode_labelled`.
        max_length: as for `encode_labelled`.
        labels: as for `encode_labelled`.

    Raises:
        DataError: as `encode_labelled` does.
    """
    require_labels(rows)
    _check_broken(rows)

    def encode(row: Row) -> list[Example]:
        return encode_block(rows.kind, [row], tokenizer, max_length)

    def encode_all(chosen: Sequence[int]) -> Encoded:
        taken = list(_stored(rows).take(chosen))
        encoded = encode_block(rows.kind, taken, tokenizer, max_length) if taken else []
        return ((number, [example]) for number, example in zip(chosen, encoded, strict=True))

    examples = ExamplesOnDemand(rows, encode, list_targets(rows, labels))
    _add_all(examples, range(max_length + 1), encode_all)
    return examples


def _add_all(
    examples: ExamplesOnDemand,
    sizes: range,
    encode_all: Callable[[Sequence[int]], Encoded],
) -> tuple[dict[int, DataError], list[int]]:
    """Add the examples of all rows.

    Args:
        examples: without any.
        sizes: bytes of the rows whose examples are not tokenised, but estimated.
        encode_all: gives the examples of rows by their positions, or why a row has none.

    Returns:
        Why rows have no example, by position; and the positions of those that train nothing.
    """
    rows = examples.rows
    tokens_per_byte = _estimate(rows, examples.encode)
    errors: dict[int, DataError] = {}
    untrained: list[int] = []
    stored = _stored(rows)
    lengths = stored.sizes()
    estimated = np.ceil(lengths * tokens_per_byte).astype(np.int64)
    fits = (lengths >= sizes.start) & (lengths < sizes.stop)
    for start in range(0, len(rows), BLOCK):
        own = slice(start, start + BLOCK)
        if fits[own].all():
            examples.add_estimated(start, estimated[own], int(lengths[own].max()))
            continue
        longer = [start + int(i) for i in np.flatnonzero(~fits[own])]
        encoded = dict(encode_all(longer))
        for number, size in enumerate(lengths[own].tolist(), start):
            found = encoded.get(number)
            if found is None:
                examples.add(number, 0, int(estimated[number]), size)
            elif isinstance(found, DataError):
                errors[number] = found
            else:
                untrained += examples.add_measured(number, found)
    return errors, untrained


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
