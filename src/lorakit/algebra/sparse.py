"""TIES, DARE and magnitude pruning of the dense changes of one module.

The result is dense; `lorakit.algebra.combination` reduces it to a low rank again.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class WeightedFactors(NamedTuple):
    """The change of one adapter at one module, and its weight in the sum.

    Attributes:
        A: (rank, in).
        B: (out, rank), with the scale of the change.
        weight: of the adapter.
    """

    A: Tensor
    B: Tensor
    weight: float

    def matrix(self) -> Tensor:
        """Return the change (out, in), without its weight."""
        return self.B @ self.A


Parts = Sequence[WeightedFactors]


def ties(parts: Parts, density: float, seed: int, name: str) -> Tensor:
    """Return the merge by TIES: trim each change, elect a sign for each weight, average by sign.

    The elected sign is that of the weighted sum. The mean of the changes with this sign is taken
    with their weights and multiplied by the sum of all absolute weights, so it equals the weighted
    sum if nothing is trimmed and all signs agree. If the weights add up to 1 it is the paper's mean
    with lambda = 1. Each module is trimmed separately.

    Args:
        parts: factors and weight of each change.
        density: share of the entries of each change to keep: the largest.
        seed: not used.
        name: not used.

    Source: Yadav et al., arXiv 2306.01708, section 4, algorithm 1.

    >>> one = WeightedFactors(torch.eye(1), torch.tensor([[2.0], [3.0]]), 0.5)
    >>> two = WeightedFactors(torch.eye(1), torch.tensor([[4.0], [-1.0]]), 0.5)
    >>> ties([one, two], 1.0, 0, "").tolist()
    [[3.0], [3.0]]
    """
    changes = _weigh_and_prune(parts, density)
    sizes = changes.new_tensor([abs(part.weight) for part in parts])
    elected_sign = changes.sum(0).sign()
    agrees = (changes.sign() == elected_sign) & (changes != 0)
    total = (changes * agrees).sum(0)
    per_entry = sizes.view(-1, *[1] * (changes.ndim - 1))
    agreeing_sizes = (agrees * per_entry).sum(0)
    divisor = torch.where(agreeing_sizes > 0, agreeing_sizes, 1.0)
    return sizes.sum() * total / divisor


def dare(parts: Parts, density: float, seed: int, name: str) -> Tensor:
    """Return the weighted sum by DARE: drop entries at random, rescale the rest to keep the mean.

    Args:
        parts: factors and weight of each change.
        density: probability to keep an entry, which is then divided by it.
        seed: of the random choice, which also depends on the module's name and the order of
            `parts`.
        name: of the module.

    Source: Yu et al., arXiv 2311.03099, section 3.2.

    >>> ones = WeightedFactors(torch.ones(1, 100), torch.ones(100, 1), 1.0)
    >>> merged = dare([ones], 0.25, 0, "q")
    >>> sorted(set(merged.flatten().tolist())), round(float(merged.mean()), 1)
    ([0.0, 4.0], 1.0)
    """
    total = 0
    for number, part in enumerate(parts):
        dense = part.matrix()
        generator = _generator_for(f"{seed} {name} {number}")
        random = torch.rand(dense.shape, generator=generator)
        is_kept = (random < density).to(dense.device)
        total = total + part.weight / density * dense * is_kept
    return torch.as_tensor(total)


def _generator_for(text: str) -> torch.Generator:
    """Return a generator seeded with a hash of a text."""
    digest = hashlib.sha256(text.encode()).digest()
    seed = int.from_bytes(digest[:8]) >> 1
    return torch.Generator().manual_seed(seed)


def magnitude(parts: Parts, density: float, seed: int, name: str) -> Tensor:
    """Return the weighted sum of changes reduced to their largest entries.

    Args:
        parts: factors and weight of each change.
        density: share of the entries of each change to keep.
        seed: not used.
        name: not used.

    >>> change = WeightedFactors(torch.eye(1), torch.tensor([[2.0], [3.0]]), 2.0)
    >>> magnitude([change], 0.5, 0, "").tolist()
    [[0.0], [6.0]]
    """
    return _weigh_and_prune(parts, density).sum(0)


def _weigh_and_prune(parts: Parts, density: float) -> Tensor:
    """Return the largest entries of each change times its weight: (parts, out, in)."""
    changes: list[Tensor] = []
    for part in parts:
        pruned = keep_largest(part.matrix(), density)
        changes.append(part.weight * pruned)
    return torch.stack(changes)


def keep_largest(dense: Tensor, density: float) -> Tensor:
    """Return a matrix with this share of its entries, the largest by size, and zeros elsewhere."""
    count = max(1, round(density * dense.numel()))
    if count >= dense.numel():
        return dense
    flat = dense.flatten()
    largest = flat.abs().topk(count, sorted=False).indices
    pruned = torch.zeros_like(flat)
    pruned[largest] = flat[largest]
    return pruned.view_as(dense)


SPARSE_METHODS: dict[str, Callable[[Parts, float, int, str], Tensor]] = {
    "ties": ties,
    "dare": dare,
    "magnitude": magnitude,
}
