"""Batches: the order of examples, by seed and step alone, and their tensors.

A batch depends on its number only, so that a run can be resumed at any step.
"""

from collections.abc import Sequence
from itertools import chain, groupby
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorakit.data.encode import IGNORED, Example

Positions = NDArray[np.int64]
Order = TypeVar("Order", list[int], Positions)
# Batches in a window of shuffled examples. Within a window, examples of similar length share a
# batch, so that little is padded.
WINDOW = 32


class Batches:
    """An endless, repeatable order of batches; `batches[number]` holds positions of examples.

    Args:
        lengths: length of each example, tokens.
        size: examples a batch; the last of an epoch may be smaller.
        seed: of the order.
        tokens: if given, a batch has about this number of tokens instead of `size` examples, and at
            least those of the longest example. Each epoch then has the same number of batches, and
            each batch an equal share of the tokens.
        packed: examples are concatenated: nothing is padded, so the lengths in a batch may differ.

    >>> batches = Batches([3, 1, 2], size=2, seed=0)
    >>> sorted(batches[0] + batches[1])
    [0, 1, 2]
    """

    def __init__(
        self,
        lengths: Sequence[int],
        size: int,
        seed: int,
        tokens: int | None = None,
        *,
        packed: bool = False,
    ):
        self.lengths = lengths
        self._lengths = np.array(lengths, np.int64)
        self.size = size
        self.seed = seed
        self.tokens = tokens
        self.packed = packed
        if tokens:
            self.per_epoch = max(1, sum(lengths) // tokens)
        else:
            self.per_epoch = -(-len(lengths) // size)  # rounded up
        self._epoch = -1
        self._batches: list[Positions] = []

    def __getitem__(self, number: int) -> list[int]:
        return self._find(number).tolist()

    def _find(self, number: int) -> Positions:
        epoch, position = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._batches = self._order(epoch)
            self._epoch = epoch
        return self._batches[position]

    def longest(self, start: int, stop: int) -> int:
        """Return the number of the batch with the most tokens, from `start` to before `stop`.

        Padding counts. Of equal batches it is the one with the longest sequence, whose attention
        costs most; of those the first.

        >>> batches = Batches([3, 1, 9, 2], size=1, seed=0)
        >>> batches[batches.longest(0, 4)]
        [2]
        """
        batches = [self._find(number) for number in range(start, stop)]
        counts = np.array([len(batch) for batch in batches])
        lengths = self._lengths[np.concatenate(batches)]
        starts = counts.cumsum() - counts
        longest = np.maximum.reduceat(lengths, starts)
        widths = np.add.reduceat(lengths, starts) if self.packed else counts * longest
        costs = zip(widths.tolist(), longest.tolist(), strict=True)
        return start + max(enumerate(costs), key=lambda pair: pair[1])[0]

    def width(self, number: int) -> int:
        """Return the number of tokens of a batch, padding included."""
        if self.packed:
            return sum(self.lengths[i] for i in self[number])
        sequences, longest = self.shape(number)
        return sequences * longest

    def shape(self, number: int) -> tuple[int, int]:
        """Return (sequences, tokens of the longest) of a batch."""
        batch = self[number]
        return len(batch), max(self.lengths[i] for i in batch)

    def _order(self, epoch: int) -> list[Positions]:
        """Return the batches of an epoch."""
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        order = torch.randperm(len(self.lengths), generator=generator).numpy()
        if self.tokens:
            return self._cut_evenly(order)
        batches: list[Positions] = []
        width = self.size * WINDOW
        for start in range(0, len(order), width):
            window = order[start : start + width]
            by_length = self._lengths[window].argsort(kind="stable")
            sorted_batches = _split(window[by_length], self.size)
            shuffle = torch.randperm(len(sorted_batches), generator=generator).tolist()
            batches += [sorted_batches[i] for i in shuffle]
        return batches

    def _cut_evenly(self, order: Positions) -> list[Positions]:
        """Cut an order into `per_epoch` parts with an equal share of the tokens each.

        An example belongs to the part that holds its middle token.
        """
        lengths = self._lengths[order]
        ends = lengths.cumsum()
        twice_middles = 2 * ends - lengths  # doubled, so that they are whole numbers
        parts = twice_middles * self.per_epoch // (2 * ends[-1])
        starts = np.searchsorted(parts, np.arange(1, self.per_epoch))
        return np.split(order, starts)


def sort_into_batches(
    lengths: Sequence[int], size: int, *, unpadded: bool = False
) -> list[list[int]]:
    """Return batches of examples of similar length, the longest first.

    They are for evaluation, whose order does not matter.

    Args:
        lengths: length of each example.
        size: examples a batch.
        unpadded: True for batches of equal lengths, in which nothing is padded.

    >>> sort_into_batches([1, 3, 2], size=2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if not unpadded:
        return _split(order, size)
    batches: list[list[int]] = []
    for _, same in groupby(order, key=lengths.__getitem__):
        batches += _split(list(same), size)
    return batches


def split_by_length(examples: Sequence[Example]) -> list[list[Example]]:
    """Return the examples in groups of one length each, in which nothing is padded.

    >>> groups = split_by_length([Example([7, 8]), Example([9]), Example([5, 6])])
    >>> [[example.ids for example in group] for group in groups]
    [[[7, 8], [5, 6]], [[9]]]
    """
    groups: dict[int, list[Example]] = {}
    for example in examples:
        groups.setdefault(len(example.ids), []).append(example)
    return list(groups.values())


def _split(order: Order, size: int) -> list[Order]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def pack_examples(
    examples: Sequence[Example], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Concatenate examples of language modelling into one row.

    Args:
        examples: of language modelling.
        device: of the tensors.

    Returns:
        The arguments that `concatenate_rows` returns, and labels (1, tokens) int64. The first label
        of each example is IGNORED, since no token of that example precedes it.
    """
    labels: list[int] = []
    for example in examples:
        labels += [IGNORED, *example.labels[1:]]
    batch = concatenate_rows([example.ids for example in examples], device)
    batch["labels"] = torch.tensor([labels], device=device)
    return batch


def concatenate_rows(
    rows: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Return a model's arguments for rows of token ids, concatenated.

    Args:
        rows: token ids.
        device: of the tensors.

    Returns:
        input_ids and position_ids (1, tokens) int64, with positions from 0 for each row;
        attention_mask, which hides nothing; and `packed`, the number of tokens of each row.

    >>> concatenate_rows([[7, 8], [9]])["position_ids"].tolist()
    [[0, 1, 0]]
    """
    lengths = [len(row) for row in rows]
    ids = list(chain.from_iterable(rows))
    positions = list(chain.from_iterable(range(length) for length in lengths))
    return {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": torch.tensor([positions], device=device),
        # transformers uses a mask with four axes unchanged, so no mask of all pairs of tokens is
        # made; attention row by row needs none.
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        "packed": tuple(lengths),
    }


def collate(
    examples: Sequence[Example], pad: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Pad examples on the right to the length of the longest.

    Args:
        examples: of one task.
        pad: id that fills up; it is masked by position, so it may equal any other id.
        device: of the tensors.

    Returns:
        input_ids and attention_mask (batch, length) int64; token_type_ids where the examples have
        them; and labels: (batch, length) or (batch, answer) int64, IGNORED where padded, (batch,
        classes) float32 flags, or (batch,) targets. Of preferences the chosen answers come first,
        then the rejected ones. Rated answers have `rated`, (batch,) bool, too.
    """
    ratings = [example.rating for example in examples if example.rating is not None]
    rejected = [example.rejected for example in examples if example.rejected is not None]
    examples = [*examples, *rejected]
    width = max(len(example.ids) for example in examples)

    masks = [[1] * len(example.ids) for example in examples]
    batch = {
        "input_ids": pad_rows([example.ids for example in examples], width, pad, device),
        "attention_mask": pad_rows(masks, width, 0, device),
    }
    if examples[0].types is not None:
        types = [example.types or [] for example in examples]
        batch["token_type_ids"] = pad_rows(types, width, 0, device)
    batch["labels"] = _collate_labels(examples, width, device)
    if ratings:
        batch["rated"] = torch.tensor(ratings, device=device)
    return batch


def _collate_labels(examples: Sequence[Example], width: int, device: torch.device | str) -> Tensor:
    """Return the labels of examples: a row of ids, of tags or of flags each, or a target."""
    first = examples[0]
    if first.answer:
        longest = max(len(example.answer) for example in examples)
        return pad_rows([example.answer for example in examples], longest, IGNORED, device)
    if first.labels:
        return pad_rows([example.labels for example in examples], width, IGNORED, device)
    if first.tags:
        return pad_rows([example.tags for example in examples], width, IGNORED, device)
    if first.flags:
        return torch.tensor([example.flags for example in examples], device=device)
    return torch.tensor([example.target for example in examples], device=device)


def pad_rows(
    rows: Sequence[list[int]],
    width: int,
    fill: int,
    device: torch.device | str = "cpu",
    *,
    on_the_left: bool = False,
) -> Tensor:
    """Return rows as one tensor (rows, width) int64, filled up on the right or on the left.

    >>> pad_rows([[7, 8], [9]], width=2, fill=0).tolist()
    [[7, 8], [9, 0]]
    """
    filled: list[list[int]] = []
    for row in rows:
        missing = [fill] * (width - len(row))
        filled.append([*missing, *row] if on_the_left else [*row, *missing])
    return torch.tensor(filled, device=device)
