"""Which examples make which batch, by seed and step alone, so that a run resumes at any step; and padding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorakit.data.encode import IGNORED, Example

WINDOW = 32  # batches: within a shuffled window of so many, examples of like length share a batch, to pad less


class Batches:
    """An endless, repeatable order of batches: `batches[k]` is the k-th, in whichever epoch that is.

    Args:
        lengths: length of each example, tokens.
        size: examples a batch; the last of an epoch may be smaller.
        seed: of the order.

    >>> sorted(sum((Batches([3, 1, 2], size=2, seed=0)[k] for k in range(2)), []))
    [0, 1, 2]
    """

    def __init__(self, lengths: Sequence[int], size: int, seed: int):
        self.lengths, self.size, self.seed = lengths, size, seed
        self.per_epoch = -(-len(lengths) // size)
        self._epoch, self._batches = -1, [[]]

    def __getitem__(self, k: int) -> list[int]:
        epoch, at = divmod(k, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._order(epoch)
        return self._batches[at]

    def longest(self, start: int, stop: int) -> int:
        """Return which of the batches from `start` to before `stop` has the most tokens, padding counted in.

        Of equal ones it is that with the longest sequence, whose attention costs most; of those the first.

        >>> batches = Batches([3, 1, 9, 2], size=1, seed=0)
        >>> batches[batches.longest(0, 4)]
        [2]
        """
        return max(range(start, stop), key=lambda k: (self.shape(k)[0] * self.shape(k)[1], self.shape(k)[1]))

    def shape(self, k: int) -> tuple[int, int]:
        """Return (sequences, tokens of the longest) of the k-th batch."""
        return len(self[k]), max(self.lengths[i] for i in self[k])

    def _order(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        batches, width = [], self.size * WINDOW
        for start in range(0, len(order), width):
            window = sorted(order[start : start + width], key=self.lengths.__getitem__)
            cut = [window[i : i + self.size] for i in range(0, len(window), self.size)]
            batches += [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]
        return batches


def in_order(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return batches of like length, longest first: for evaluation, where order does not matter."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + size] for i in range(0, len(order), size)]


def collate(examples: Sequence[Example], pad: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Pad examples on the right to their longest.

    Args:
        examples: of one task.
        pad: id that fills up; it is masked by position, so it may equal any other id.
        device: where the tensors go.

    Returns:
        input_ids and attention_mask (batch, length) int64; labels (batch, length) int64, IGNORED where padded, or
        (batch,) targets; token_type_ids where the examples have them.
    """
    width = max(len(e.ids) for e in examples)

    def rows(values: Sequence[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*v, *[fill] * (width - len(v))] for v in values], device=device)

    batch = {"input_ids": rows([e.ids for e in examples], pad),
             "attention_mask": rows([[1] * len(e.ids) for e in examples], 0)}  # fmt: skip
    if examples[0].types is not None:
        batch["token_type_ids"] = rows([e.types or [] for e in examples], 0)
    if examples[0].labels:
        batch["labels"] = rows([e.labels for e in examples], IGNORED)
    else:
        batch["labels"] = torch.tensor([e.target for e in examples], device=device)
    return batch
