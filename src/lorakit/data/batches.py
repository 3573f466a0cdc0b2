"""Which examples make which batch, by seed and step alone, so that a run resumes at any step; and
padding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.data.encode import IGNORED, Example

# batches: within a shuffled window of so many, examples of like length share a batch, to pad less
WINDOW = 32


class Batches:
    """An endless, repeatable order of batches: `batches[k]` is the k-th, in whichever epoch that
    is.

    Args:
        lengths: length of each example, tokens.
        size: examples a batch; the last of an epoch may be smaller.
        seed: of the order.
        tokens: where given, a batch has about so many tokens instead of `size` examples, at least
            as many as the longest example; each epoch then has the same number of batches, cut from
            its order where the tokens are even.
        packed: examples lie one after the other, so that nothing is padded and like lengths need
            not go together.

    >>> sorted(sum((Batches([3, 1, 2], size=2, seed=0)[k] for k in range(2)), []))
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
        self.lengths, self.size, self.seed, self.tokens, self.packed = (
            lengths,
            size,
            seed,
            tokens,
            packed,
        )
        self.per_epoch = max(1, sum(lengths) // tokens) if tokens else -(-len(lengths) // size)
        self._epoch, self._batches = -1, [[]]

    def __getitem__(self, k: int) -> list[int]:
        epoch, at = divmod(k, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._order(epoch)
        return self._batches[at]

    def longest(self, start: int, stop: int) -> int:
        """Return which of the batches from `start` to before `stop` has the most tokens, padding
        counted in.

        Of equal ones it is that with the longest sequence, whose attention costs most; of those the
        first.

        >>> batches = Batches([3, 1, 9, 2], size=1, seed=0)
        >>> batches[batches.longest(0, 4)]
        [2]
        """
        return max(range(start, stop), key=lambda k: (self.width(k), self.shape(k)[1]))

    def width(self, k: int) -> int:
        """Return the tokens that the k-th batch takes, padding counted in."""
        rows, longest = self.shape(k)
        return sum(self.lengths[i] for i in self[k]) if self.packed else rows * longest

    def shape(self, k: int) -> tuple[int, int]:
        """Return (sequences, tokens of the longest) of the k-th batch."""
        return len(self[k]), max(self.lengths[i] for i in self[k])

    def _order(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if self.tokens:
            return self._cut(order)
        batches, width = [], self.size * WINDOW
        for start in range(0, len(order), width):
            window = sorted(order[start : start + width], key=self.lengths.__getitem__)
            cut = [window[i : i + self.size] for i in range(0, len(window), self.size)]
            batches += [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]
        return batches

    def _cut(self, order: list[int]) -> list[list[int]]:
        """Cut an order into `per_epoch` parts of even tokens: an example goes where its middle
        lies.
        """
        batches: list[list[int]] = [[] for _ in range(self.per_epoch)]
        total, before = sum(self.lengths), 0
        for i in order:
            batches[
                min(
                    (2 * before + self.lengths[i]) * self.per_epoch // (2 * total),
                    self.per_epoch - 1,
                )
            ].append(i)
            before += self.lengths[i]
        return batches


def sort_into_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return batches of like length, longest first: for evaluation, where order does not matter."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + size] for i in range(0, len(order), size)]


def pack_examples(
    examples: Sequence[Example], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Lay examples of language modelling one after the other.

    Args:
        examples: of language modelling.
        device: where the tensors go.

    Returns:
        input_ids, position_ids and labels (1, tokens) int64, each example from position 0, with its
        first label IGNORED: no token before it predicts it; a mask that is none; and `packed`, the
            tokens of each example.
    """
    labels = [label for e in examples for label in [IGNORED, *e.labels[1:]]]
    return {
        **concatenate_rows([e.ids for e in examples], device),
        "labels": torch.tensor([labels], device=device),
    }


def concatenate_rows(
    rows: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Return what a model is called with for token ids that lie one after the other.

    >>> concatenate_rows([[7, 8], [9]])["position_ids"].tolist()
    [[0, 1, 0]]
    """
    return {
        "input_ids": torch.tensor([[t for row in rows for t in row]], device=device),
        "position_ids": torch.tensor([[i for row in rows for i in range(len(row))]], device=device),
        # A mask of four axes is taken as it is: none is made of all pairs of tokens, and attention
        # row by row needs none.
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        "packed": tuple(len(row) for row in rows),
    }


def collate(
    examples: Sequence[Example], pad: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Pad examples on the right to their longest.

    Args:
        examples: of one task.
        pad: id that fills up; it is masked by position, so it may equal any other id.
        device: where the tensors go.

    Returns:
        input_ids and attention_mask (batch, length) int64; labels (batch, length) int64, IGNORED
        where padded, or (batch,) targets; token_type_ids where the examples have them.
    """
    width = max(len(e.ids) for e in examples)

    def rows(values: Sequence[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*v, *[fill] * (width - len(v))] for v in values], device=device)

    batch = {
        "input_ids": rows([e.ids for e in examples], pad),
        "attention_mask": rows([[1] * len(e.ids) for e in examples], 0),
    }
    if examples[0].types is not None:
        batch["token_type_ids"] = rows([e.types or [] for e in examples], 0)
    if examples[0].labels:
        batch["labels"] = rows([e.labels for e in examples], IGNORED)
    else:
        batch["labels"] = torch.tensor([e.target for e in examples], device=device)
    return batch
