"""Numbers that describe the spectrum of a low-rank change: energy, effective rank, stable rank.

Spectra are tensors of singular values, descending: (k,) of one matrix, (stack, k) of a stack of
matrices (experts). U, S, V are those of the singular value decomposition.

Source: Golub and Van Loan, Matrix Computations, 4th ed., section 2.4 (U, S, V).
"""

from typing import TypeGuard

import torch
from torch import Tensor

from lorakit.deltas.base import Delta, LowRank
from lorakit.deltas.offset import OffsetLowRank
from lorakit.errors import SpecError
from lorakit.linalg import Factors, split_singular_values, thin_svd

ROUNDING = 1e-12  # tolerance of a share of energy, for the rounding of its sum
# Singular values below this share of the largest, times the longer side, are rounding errors.
NOISE = 1e-15


def factors_of(name: str, delta: Delta, M: Tensor | None = None) -> Factors:
    """Return factors A and B with `B @ A` equal to the change of a delta, its scale included.

    Plain low rank returns its own factors; the change of another parameterisation is built densely
    and factored by an SVD, which is exact.

    Args:
        name: of the module, for the error message.
        delta: of any kind.
        M: (out, in), the base matrix; needed only if the change depends on it (DoRA).

    Returns:
        A (rank, in) and B (out, rank), float64.

    Raises:
        SpecError: the change depends on the base matrix, and M is None; the message names module
            and kind.

    >>> A, B = factors_of("q", LowRank(torch.ones(1, 2), torch.ones(2, 1), alpha=3.0))
    >>> (B @ A).tolist()
    [[3.0, 3.0], [3.0, 3.0]]
    """
    if isinstance(delta, OffsetLowRank):
        delta = delta.to_low_rank()
    if is_plain(delta):
        return scaled_factors(delta)
    try:
        with torch.no_grad():
            dense = delta.matrix(M).double()
    except SpecError as error:
        raise SpecError(
            f"{name}: the change of a {type(delta).__name__} depends on the base's matrix, so it "
            "is not a product of its factors.",
            advice="Give the base (--model).",
        ) from error
    return _factors_of_dense(dense)


def scaled_factors(delta: LowRank) -> Factors:
    """Return the factors A and B of a low-rank delta in float64, its scale multiplied into B."""
    return delta.A.detach().double(), delta.B.detach().double() * delta.scale


def _factors_of_dense(dense: Tensor) -> Factors:
    """Return exact factors of a dense matrix or stack, without directions of rounding errors."""
    U, S, Vh = thin_svd(dense)
    smallest = S.amax() * NOISE * max(dense.shape[-2:])
    counts = (smallest < S).sum(-1)
    rank = max(1, int(counts.max()))
    return split_singular_values(U, S, Vh, rank)


def is_plain(delta: Delta) -> TypeGuard[LowRank]:
    """Return True if the change of a delta is `scale * B @ A` of its factors and nothing else."""
    return delta.is_product


def cumulative_energy(values: Tensor) -> Tensor:
    """Return the share of the squared norm in the first 1, 2, … directions; ones if all are zero.

    >>> cumulative_energy(torch.tensor([3.0, 1.0])).tolist()
    [0.9, 1.0]
    """
    squares = values.double().square()
    total = squares.sum(-1, keepdim=True)
    smallest = torch.finfo(torch.float64).tiny
    shares = squares.cumsum(-1) / total.clamp_min(smallest)
    return torch.where(total > 0, shares, 1.0)


def rank_for_energy(values: Tensor, share: float) -> int:
    """Return the smallest rank that keeps this share of the squared norm; 0 if all are zero.

    >>> values = torch.tensor([3.0, 1.0])
    >>> rank_for_energy(values, 0.9), rank_for_energy(values, 0.95)
    (1, 2)
    >>> rank_for_energy(torch.zeros(2), 0.9)
    0
    """
    if not values.any():
        return 0
    is_below = cumulative_energy(values) < share - ROUNDING
    return int(is_below.sum(-1).max()) + 1


def effective_rank(values: Tensor) -> float:
    """Return exp(entropy) of the normalised singular values; 0.0 if all are zero.

    It counts the directions that contribute: k equal values give k. Of a stack, the mean over its
    matrices.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.

    >>> effective_rank(torch.tensor([1.0, 1.0, 0.0]))
    2.0
    """
    smallest = torch.finfo(values.dtype).tiny
    total = values.sum(-1, keepdim=True)
    share = values / total.clamp_min(smallest)
    logarithm = share.clamp_min(smallest).log()
    entropy = -(share * logarithm).sum(-1)
    ranks = torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0)
    return round(float(ranks.mean()), 12)


def stable_rank(values: Tensor) -> float:
    """Return |M|_F^2 / |M|_2^2, at least 1; 0.0 if all are zero.

    Small directions hardly change it. Of a stack, the mean over its matrices.

    Source: Rudelson and Vershynin, Journal of the ACM 54 (4), 2007 (numerical rank).

    >>> stable_rank(torch.tensor([2.0, 2.0, 1.0]))
    2.25
    """
    largest = values.amax(-1).square()
    ratio = values.square().sum(-1) / largest.clamp_min(torch.finfo(values.dtype).tiny)
    ranks = torch.where(largest > 0, ratio, 0.0)
    return round(float(ranks.mean()), 12)
