"""What a change of low rank looks like: singular values, energy, effective and stable rank, from
the factors alone.

Leading axes are those of a stack (experts): every function takes one matrix or a stack of them.
"""

from typing import TypeGuard

import torch
from torch import Tensor

from lorakit.deltas.base import Delta, LowRank
from lorakit.deltas.offset import OffsetLowRank
from lorakit.errors import SpecError
from lorakit.linalg import split_singular_values


def factors_of(name: str, delta: Delta, M: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank), float64, with `B @ A` what the delta adds to M, its
    scale included.

    Plain low rank gives its own factors; another parameterisation is built whole and factored by an
    SVD, which is exact.

    Args:
        name: the module, for the message.
        delta: of any kind.
        M: (out, in), the base's matrix; only deltas whose change depends on it need one.

    Raises:
        SpecError: the change depends on the base's matrix, and there is none; the message names
            module and kind.

    >>> A, B = factors_of("q", LowRank(torch.ones(1, 2), torch.ones(2, 1), alpha=3.0))
    >>> (B @ A).tolist()
    [[3.0, 3.0], [3.0, 3.0]]
    """
    if isinstance(delta, OffsetLowRank):
        delta = delta.to_low_rank()
    if is_plain(delta):
        return delta.A.detach().double(), delta.B.detach().double() * delta.scale
    try:
        with torch.no_grad():
            dense = delta.matrix(M).double()
    except SpecError as error:
        raise SpecError(
            f"{name}: what a {type(delta).__name__} adds depends on the base's matrix, so its change is no product "
            "of its factors.",
            advice="Give the base (--model).",
        ) from error
    U, S, Vh = torch.linalg.svd(dense, full_matrices=False)
    keep = max(1, int((S.amax() * 1e-15 * max(dense.shape[-2:]) < S).sum(-1).max()))
    return split_singular_values(U, S, Vh, keep)


def is_plain(delta: Delta) -> TypeGuard[LowRank]:
    """Tell whether what a delta adds is `scale * B @ A` and nothing else, so that its factors say
    all.
    """
    return delta.is_product


def cumulative_energy(values: Tensor) -> Tensor:
    """Return the share of the squared norm that the first 1, 2, … directions hold; ones where there
    is nothing.

    >>> cumulative_energy(torch.tensor([3.0, 1.0])).tolist()
    [0.9, 1.0]
    """
    squares = values.double().square()
    total = squares.sum(-1, keepdim=True)
    return torch.where(
        total > 0, squares.cumsum(-1) / total.clamp_min(torch.finfo(torch.float64).tiny), 1.0
    )


def rank_for_energy(values: Tensor, share: float) -> int:
    """Return the smallest rank whose directions hold at least this share of the energy; 0 where all
    values are zero.

    >>> rank_for_energy(torch.tensor([3.0, 1.0]), 0.9), rank_for_energy(torch.tensor([3.0, 1.0]), 0.95), rank_for_energy(torch.zeros(2), 0.9)
    (1, 2, 0)
    """
    if not values.any():
        return 0
    # A hair's breadth for the rounding of the sum: 0.9 of a norm must not ask for one more
    # direction.
    return int((cumulative_energy(values) < share - 1e-12).sum(-1).max()) + 1


def effective_rank(values: Tensor) -> float:
    """Return exp(entropy) of the singular values' shares: the number of directions that really
    count; 0.0 of zeros.

    Of a stack, the mean over its matrices.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.

    >>> effective_rank(torch.tensor([1.0, 1.0, 0.0]))
    2.0
    """
    total = values.sum(-1, keepdim=True)
    share = values / total.clamp_min(torch.finfo(values.dtype).tiny)
    entropy = -(share * share.clamp_min(torch.finfo(values.dtype).tiny).log()).sum(-1)
    return round(float(torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0).mean()), 12)


def stable_rank(values: Tensor) -> float:
    """Return |M|_F^2 / |M|_2^2: at least 1, moved by no small direction; 0.0 of zeros. Of a stack,
    the mean.

    >>> stable_rank(torch.tensor([2.0, 2.0, 1.0]))
    2.25
    """
    top = values.amax(-1).square()
    ratio = values.square().sum(-1) / top.clamp_min(torch.finfo(values.dtype).tiny)
    return round(float(torch.where(top > 0, ratio, 0.0).mean()), 12)
