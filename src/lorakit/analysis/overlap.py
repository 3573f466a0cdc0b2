"""Similarity of two changes, and of a change and the base matrix: subspaces, angles, signs.

Letters are those of the papers: W the base matrix, U and V directions (singular vectors), S
singular values.

Source: Hu et al., LoRA, arXiv 2106.09685, section 7 (U, S, V, W, i, j).
"""

import math
from dataclasses import asdict, dataclass

import scipy.linalg
import torch
from torch import Tensor

from lorakit.errors import SpecError
from lorakit.linalg import Factors, product_norm, randomised_svd, svd_of_product, thin_svd

BLOCK = 1 << 22  # entries of a dense product that are computed at once
DIGITS = 12  # decimals of a cosine; those after them are rounding errors


def subspace_similarity(A1: Tensor, A2: Tensor) -> Tensor:
    """Return phi(A1, A2, i, j) for all i and j: the similarity of the top i and top j directions.

    phi = |V1_i^T V2_j|_F^2 / min(i, j) with V the right singular vectors: 1 if one span contains
    the other, 0 if they are orthogonal. Random matrices of width d give max(i, j) / d on average:
    see `random_similarity`.

    Args:
        A1: (rank 1, in), any floating dtype: A of an adapter, or the Vh of `svd_of_product(A, B)`
            times its singular values.
        A2: (rank 2, in).

    Returns:
        (rank 1, rank 2) float64 in [0, 1]; phi(i, j) is at [i - 1, j - 1].

    Raises:
        SpecError: the widths differ.

    Source: Hu et al., LoRA, arXiv 2106.09685, section 7.2 and appendix G (whose 1 - d^2 should read
        1 - d^2 / p).

    >>> subspace_similarity(torch.eye(3)[:2], torch.eye(3)[:1]).tolist()
    [[1.0], [1.0]]
    """
    _check_widths(A1, A2)
    V1, V2 = thin_svd(A1).Vh, thin_svd(A2).Vh
    squares = (V1 @ V2.mT).square()
    shared = squares.cumsum(0).cumsum(1)
    i = torch.arange(1, len(V1) + 1, device=shared.device)
    j = torch.arange(1, len(V2) + 1, device=shared.device)
    smaller = torch.minimum(i.unsqueeze(1), j)
    return (shared / smaller).clamp(0, 1)


def random_similarity(rank1: int, rank2: int, width: int, *, seed: int = 0) -> Tensor:
    """Return `subspace_similarity` of two Gaussian matrices: the level of unrelated changes.

    >>> round(float(random_similarity(8, 8, 1024)[-1, -1]), 3)  # about 8 / 1024
    0.008
    """
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(rank1, width, generator=generator)
    second = torch.randn(rank2, width, generator=generator)
    return subspace_similarity(first, second)


def principal_angles(A1: Tensor, A2: Tensor) -> Tensor:
    """Return the angles between the row spaces of two matrices, in degrees, ascending.

    An angle of 0 is a shared direction, 90 an orthogonal one.

    Args:
        A1: (rank 1, in), any floating dtype.
        A2: (rank 2, in).

    Returns:
        (min(rank 1, rank 2),) float64, on the CPU.

    Raises:
        SpecError: the widths differ.

    Source: Knyazev and Argentati, 2002, as scipy.linalg.subspace_angles computes them.

    >>> principal_angles(torch.eye(3)[:2], torch.eye(3)[1:]).round(decimals=6).tolist()
    [0.0, 90.0]
    """
    _check_widths(A1, A2)
    first = A1.detach().double().cpu().numpy()
    second = A2.detach().double().cpu().numpy()
    radians = scipy.linalg.subspace_angles(first.T, second.T)
    descending = torch.from_numpy(radians.copy())
    return torch.rad2deg(descending).flip(0)


def cosine(first: Factors, second: Factors) -> float:
    """Return the cosine between two products B A as vectors of all their entries; 0.0 if one is 0.

    >>> one = (torch.eye(2), torch.eye(2))
    >>> cosine(one, one), cosine(one, (torch.eye(2), -torch.eye(2)))
    (1.0, -1.0)
    """
    A1, B1 = _cast(first, torch.float64)
    A2, B2 = _cast(second, torch.float64)
    norms = product_norm(A1, B1) * product_norm(A2, B2)
    if not norms:
        return 0.0
    # The inner product of B1 A1 and B2 A2 is the trace of (B1^T B2) (A2 A1^T).
    outputs, inputs = B1.mT @ B2, A1 @ A2.mT
    inner = (outputs * inputs).sum()
    return round(float(inner) / norms, DIGITS)


def sign_conflict(first: Factors, second: Factors) -> float:
    """Return the share of weights that two changes move in opposite directions; 0.5 is chance.

    Weights that one of them does not change count as no conflict.

    Args:
        first: A (rank, in) and B (out, rank) of a change, its scale in B.
        second: those of another change of the same (out, in).

    Cost: the dense product, in blocks of output rows: signs are those of single weights.

    >>> one = (torch.eye(2), torch.eye(2))
    >>> two = (torch.eye(2), torch.tensor([[1.0, 5.0], [0.0, -1.0]]))
    >>> sign_conflict(one, two)
    0.25
    """
    A1, B1 = _cast(first, torch.float32)
    A2, B2 = _cast(second, torch.float32)
    stack, inputs = A1.shape[:-2].numel(), A1.shape[-1]
    block_rows = max(1, BLOCK // (inputs * max(1, stack)))
    blocks1, blocks2 = B1.split(block_rows, -2), B2.split(block_rows, -2)
    conflicts = 0
    for block1, block2 in zip(blocks1, blocks2, strict=True):
        product = (block1 @ A1) * (block2 @ A2)
        conflicts += int((product < 0).sum())
    return conflicts / (B1.shape[:-1].numel() * inputs)


def _cast(factors: Factors, dtype: torch.dtype) -> Factors:
    A, B = factors
    return A.detach().to(dtype), B.detach().to(dtype)


@dataclass(frozen=True)
class Amplification:
    """One column of the LoRA paper's table 7: the strength of W along the directions of a change.

    Attributes:
        rank: number of directions.
        along_delta: |U^T W V| with U, V the top directions of the change.
        along_W: the same with the top directions of W.
        along_random: the same with random directions.
        delta_norm: Frobenius norm of the change.
        W_norm: Frobenius norm of W.
        factor: delta_norm / along_delta; infinite if W is zero along the change.
    """

    rank: int
    along_delta: float
    along_W: float
    along_random: float
    delta_norm: float
    W_norm: float
    factor: float

    def to_dict(self) -> dict[str, float]:
        """Return the attributes by name, as JSON holds them."""
        return asdict(self)


def amplification(
    W: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float = 1.0,
    *,
    rank: int | None = None,
    seed: int = 0,
) -> Amplification:
    """Return the amplification of directions that the change uses and W does not emphasise.

    Args:
        W: (out, in), the base matrix, any floating dtype.
        A: (rank, in) of the change.
        B: (out, rank).
        scale: factor of B A.
        rank: number of directions of the change; None for all.
        seed: of the random directions, the control.

    Raises:
        SpecError: the shapes do not fit, or the change has fewer directions.

    Source: Hu et al., LoRA, arXiv 2106.09685, section 7.3 and table 7.

    >>> W = torch.diag(torch.tensor([8.0, 1.0, 1.0]))
    >>> A = torch.tensor([[0.0, 2.0, 0.0]])
    >>> amplification(W, A, B=A.T).factor
    4.0
    """
    U, S, Vh = svd_of_product(A, B, scale)
    count = len(S) if rank is None else rank
    shape = (len(U), Vh.shape[1])
    if W.shape != shape or not 1 <= count <= len(S):
        raise SpecError(
            f"W is {tuple(W.shape)}, the change is {shape} with {len(S)} directions; "
            f"{count} are needed.",
            advice=f"Give a change of W's shape, and a rank from 1 to {len(S)}.",
        )
    W = W.detach().double()
    along_delta = _norm_along(W, U[:, :count], Vh[:count].mT)
    delta_norm = float(S.norm())
    top_of_W = randomised_svd(W, count).S[:count]
    return Amplification(
        rank=count,
        along_delta=along_delta,
        along_W=float(top_of_W.norm()),
        along_random=_norm_along_random(W, count, seed),
        delta_norm=delta_norm,
        W_norm=float(W.norm()),
        factor=delta_norm / along_delta if along_delta else math.inf,
    )


def _norm_along(W: Tensor, U: Tensor, V: Tensor) -> float:
    """Return |U^T W V|, the norm of W along the directions U (out, k) and V (in, k)."""
    return float((U.mT @ W @ V).norm())


def _norm_along_random(W: Tensor, count: int, seed: int) -> float:
    """Return the norm of W along random orthonormal directions."""
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs = W.shape
    V = _random_basis(inputs, count, generator)
    U = _random_basis(outputs, count, generator)
    return _norm_along(W, U.to(W.device), V.to(W.device))


def _random_basis(width: int, count: int, generator: torch.Generator) -> Tensor:
    random = torch.randn(width, count, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(random).Q


def intruder_dimensions(
    W: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float = 1.0,
    *,
    top: int = 10,
    threshold: float = 0.5,
) -> int:
    """Count the intruders: top directions of W + scale B A that resemble no direction of W.

    A direction is an intruder if its cosine with every left singular vector of W is below the
    threshold. Full fine-tuning makes few; LoRA at a low rank and a high learning rate makes more,
    and with them the model forgets more.

    Args:
        W: (out, in), the base matrix.
        A: (rank, in) of the change.
        B: (out, rank).
        scale: factor of B A.
        top: number of directions of W + scale B A to check.
        threshold: cosine below which a direction is new.

    Cost: dense: the full SVD of W, and the top directions of the sum.
    Source: Shuttleworth et al., LoRA vs full fine-tuning, arXiv 2410.21228, section 3 and algorithm
        1.

    >>> W = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> intruder_dimensions(W, torch.ones(1, 3), 9 * torch.ones(3, 1), top=1, threshold=0.6)
    1
    """
    A, B = _cast((A, B), torch.float64)
    W = W.detach().double()
    changed = W + scale * (B @ A)
    base_directions = thin_svd(W).U
    count = min(top, *W.shape)
    new_directions = randomised_svd(changed, count).U[:, :top]
    cosines = (base_directions.mT @ new_directions).abs()
    is_new = cosines.amax(0) < threshold
    return int(is_new.sum())


def _check_widths(A1: Tensor, A2: Tensor) -> None:
    if A1.ndim != 2 or A2.ndim != 2 or A1.shape[1] != A2.shape[1]:
        raise SpecError(
            "Two matrices of the same width are needed: "
            f"they are {tuple(A1.shape)} and {tuple(A2.shape)}."
        )
