"""TIES, DARE and magnitude pruning: what they do to dense changes of one module, before these get a
low rank again.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

Parts = list[tuple[Tensor, Tensor, float]]  # A (rank, in), B (out, rank) with its scale, weight


def ties(parts: Parts, density: float, seed: int, name: str) -> Tensor:
    """Return the merge by TIES: trim each change, elect a sign for each weight, average those that
    agree with it.

    The elected sign is that of the weighted sum. The mean is taken with the weights and multiplied
    by the sum of their sizes, so that it equals the weighted sum where nothing is trimmed and all
    signs agree; with weights that add up to 1 it is the paper's mean with lambda = 1. Trimmed by
    module, not over all of the model.

    Args:
        parts: factors and weight of each change.
        density: share of each change's entries that is kept: the largest.
        seed: not used.
        name: not used.

    Source: Yadav et al., arXiv 2306.01708, section 4, algorithm 1.

    >>> one, two = (torch.eye(1), torch.tensor([[2.0], [3.0]]), 0.5), (torch.eye(1), torch.tensor([[4.0], [-1.0]]), 0.5)
    >>> ties([one, two], 1.0, 0, "").tolist()
    [[3.0], [3.0]]
    """
    weighted = torch.stack([weight * keep_largest(B @ A, density) for A, B, weight in parts])
    sizes = torch.tensor(
        [abs(weight) for *_, weight in parts], dtype=weighted.dtype, device=weighted.device
    )
    agree = (weighted.sign() == weighted.sum(0).sign()) & (weighted != 0)
    voting = (agree * sizes.view(-1, *[1] * (weighted.ndim - 1))).sum(0)
    return sizes.sum() * (weighted * agree).sum(0) / torch.where(voting > 0, voting, 1.0)


def dare(parts: Parts, density: float, seed: int, name: str) -> Tensor:
    """Return the weighted sum of changes of which entries were dropped at random and the rest
    enlarged to keep the mean.

    Args:
        parts: factors and weight of each change.
        density: probability with which an entry is kept; it is then divided by it.
        seed: of the draw, which also depends on the module's name and the place in `parts`.
        name: the module.

    Source: Yu et al., arXiv 2311.03099, section 3.2.

    >>> found = dare([(torch.ones(1, 100), torch.ones(100, 1), 1.0)], 0.25, 0, "q")
    >>> sorted(set(found.flatten().tolist())), round(float(found.mean()), 1)
    ([0.0, 4.0], 1.0)
    """
    total = 0
    for number, (A, B, weight) in enumerate(parts):
        digest = hashlib.sha256(f"{seed} {name} {number}".encode()).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        dense = B @ A
        kept = (torch.rand(dense.shape, generator=draw) < density).to(dense.device)
        total = total + weight / density * dense * kept
    return torch.as_tensor(total)


def magnitude(parts: Parts, density: float, seed: int, name: str) -> Tensor:
    """Return the weighted sum of changes of which only the largest entries are kept.

    Args:
        parts: factors and weight of each change.
        density: share of each change's entries that is kept.
        seed: not used.
        name: not used.

    >>> magnitude([(torch.eye(1), torch.tensor([[2.0], [3.0]]), 2.0)], 0.5, 0, "").tolist()
    [[0.0], [6.0]]
    """
    return torch.stack([weight * keep_largest(B @ A, density) for A, B, weight in parts]).sum(0)


def keep_largest(dense: Tensor, density: float) -> Tensor:
    """Return a matrix of which only the largest entries by size are left: this share of them, zeros
    elsewhere.
    """
    count = max(1, round(density * dense.numel()))
    if count >= dense.numel():
        return dense
    kept = dense.flatten().abs().topk(count, sorted=False).indices
    out = torch.zeros_like(dense).flatten()
    out[kept] = dense.flatten()[kept]
    return out.view_as(dense)


SPARSE_METHODS: dict[str, Callable[[Parts, float, int, str], Tensor]] = {
    "ties": ties,
    "dare": dare,
    "magnitude": magnitude,
}
