"""How one change lies to another, and to the matrix it changes: subspaces, angles, signs,
amplification, intruders.
"""

from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

from lorakit.errors import SpecError
from lorakit.linalg import product_norm, randomised_svd, svd_of_product

BLOCK = 1 << 22  # entries of a dense product that are looked at together


def subspace_similarity(A1: Tensor, A2: Tensor) -> Tensor:
    """Return phi(A1, A2, i, j) for every i and j: how much of the top i directions of one lies in
    the top j of the other.

    phi = |V1_i^T V2_j|_F^2 / min(i, j) with V the right singular vectors: 1 where one span holds
    the other, 0 where they are orthogonal. Random ones of width d give max(i, j) / d on average:
    see `random_similarity`.

    Args:
        A1: (rank 1, in), any floating dtype: A of an adapter, or the Vh of `svd_of_product(A, B)` times its
            singular values.
        A2: (rank 2, in).

    Returns:
        (rank 1, rank 2) float64 in [0, 1]; phi(i, j) stands at [i - 1, j - 1].

    Raises:
        SpecError: the widths differ.

    Source: Hu et al., LoRA, arXiv 2106.09685, section 7.2 and appendix G (whose 1 - d^2 should read
        1 - d^2 / p).

    >>> subspace_similarity(torch.eye(3)[:2], torch.eye(3)[:1]).tolist()
    [[1.0], [1.0]]
    """
    _same_width(A1, A2)
    V1, V2 = (torch.linalg.svd(A.detach().double(), full_matrices=False).Vh for A in (A1, A2))
    shared = (V1 @ V2.mT).square().cumsum(0).cumsum(1)
    i, j = (torch.arange(1, n + 1, device=shared.device) for n in shared.shape)
    return (shared / torch.minimum(i.unsqueeze(1), j.unsqueeze(0))).clamp(0, 1)


def random_similarity(rank1: int, rank2: int, width: int, *, seed: int = 0) -> Tensor:
    """Return `subspace_similarity` of two Gaussian matrices: what is found where nothing was
    learned.

    >>> round(float(random_similarity(8, 8, 1024)[-1, -1]), 3)  # about 8 / 1024
    0.008
    """
    draw = torch.Generator().manual_seed(seed)
    return subspace_similarity(
        torch.randn(rank1, width, generator=draw), torch.randn(rank2, width, generator=draw)
    )


def principal_angles(A1: Tensor, A2: Tensor) -> Tensor:
    """Return the angles between the row spaces of two matrices, in degrees, ascending: 0 is shared,
    90 is orthogonal.

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
    _same_width(A1, A2)
    first, second = (A.detach().double().cpu().numpy().T for A in (A1, A2))
    return torch.rad2deg(torch.from_numpy(scipy.linalg.subspace_angles(first, second).copy())).flip(
        0
    )


def cosine(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """Return the cosine between two products B A as vectors of all their entries, from the factors;
    0.0 where one is zero.

    >>> one = (torch.eye(2), torch.eye(2))
    >>> cosine(one, one), cosine(one, (torch.eye(2), -torch.eye(2)))
    (1.0, -1.0)
    """
    (A1, B1), (A2, B2) = ((A.detach().double(), B.detach().double()) for A, B in (first, second))
    size = product_norm(A1, B1) * product_norm(A2, B2)
    inner = float(((B1.mT @ B2) * (A1 @ A2.mT)).sum())
    return round(inner / size, 12) if size else 0.0


def sign_conflict(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """Return the share of the weights that two changes push in opposite directions; random ones
    give 0.5.

    Weights that either leaves alone count as no conflict.

    Args:
        first: A (rank, in) and B (out, rank) of a change, its scale in B.
        second: those of another, of the same (out, in).

    Cost: the dense product, in blocks of rows: signs are of single weights.

    >>> sign_conflict((torch.eye(2), torch.eye(2)), (torch.eye(2), torch.tensor([[1.0, 5.0], [0.0, -1.0]])))
    0.25
    """
    (A1, B1), (A2, B2) = ((A.detach().float(), B.detach().float()) for A, B in (first, second))
    rows = max(1, BLOCK // (A1.shape[-1] * max(1, A1.shape[:-2].numel())))
    against = sum(
        int(((b1 @ A1) * (b2 @ A2) < 0).sum())
        for b1, b2 in zip(B1.split(rows, -2), B2.split(rows, -2), strict=True)
    )
    return against / (B1.shape[:-1].numel() * A1.shape[-1])


@dataclass(frozen=True)
class Amplification:
    """One column of the paper's table 7: how strongly W already acts along the directions that the
    change uses.

    Attributes:
        rank: how many directions.
        along_delta: |U^T W V| with U, V the top directions of the change.
        along_W: the same with those of W.
        along_random: the same with random ones.
        delta_norm: Frobenius norm of the whole change.
        W_norm: Frobenius norm of W.
        factor: delta_norm / along_delta; infinite where W has nothing there.
    """

    rank: int
    along_delta: float
    along_W: float
    along_random: float
    delta_norm: float
    W_norm: float
    factor: float


def amplification(
    W: Tensor, A: Tensor, B: Tensor, scale: float = 1.0, *, rank: int | None = None, seed: int = 0
) -> Amplification:
    """Return how much a change amplifies directions of W that W itself does not emphasise.

    Args:
        W: (out, in), the base's matrix, any floating dtype.
        A: (rank, in) of the change.
        B: (out, rank).
        scale: what multiplies B A.
        rank: how many of its directions count; all where None.
        seed: of the random directions, the control.

    Raises:
        SpecError: the shapes do not fit, or the change has fewer directions.

    Source: Hu et al., LoRA, arXiv 2106.09685, section 7.3 and table 7.

    >>> W = torch.diag(torch.tensor([8.0, 1.0, 1.0]))
    >>> amplification(W, torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[0.0], [2.0], [0.0]])).factor
    4.0
    """
    U, S, Vh = svd_of_product(A, B, scale)
    rank = len(S) if rank is None else rank
    if W.shape != (len(U), Vh.shape[1]) or not 1 <= rank <= len(S):
        raise SpecError(
            f"W is {tuple(W.shape)}, the change {(len(U), Vh.shape[1])} with {len(S)} directions; {rank} are asked."
        )
    draw = torch.Generator().manual_seed(seed)
    W = W.detach().double()
    R, L = (
        torch.linalg.qr(torch.randn(n, rank, generator=draw, dtype=torch.float64)).Q.to(W.device)
        for n in W.shape[::-1]
    )
    along, norm = float((U[:, :rank].mT @ W @ Vh[:rank].mT).norm()), float(S.norm())
    return Amplification(
        rank=rank,
        along_delta=along,
        along_W=float(randomised_svd(W, rank)[1][:rank].norm()),
        along_random=float((L.mT @ W @ R).norm()),
        delta_norm=norm,
        W_norm=float(W.norm()),
        factor=norm / along if along else float("inf"),
    )


def intruder_dimensions(
    W: Tensor, A: Tensor, B: Tensor, scale: float = 1.0, *, top: int = 10, threshold: float = 0.5
) -> int:
    """Count the top directions of the changed matrix that resemble no direction of the base's:
    intruders.

    A direction is an intruder where its cosine with every left singular vector of W is below the
    threshold. Full fine-tuning makes few; LoRA at a low rank and a high rate makes more, and with
    them the model forgets more.

    Args:
        W: (out, in), the base's matrix.
        A: (rank, in) of the change.
        B: (out, rank).
        scale: what multiplies B A.
        top: how many directions of W + scale B A are looked at.
        threshold: the cosine below which a direction is new.

    Cost: dense: an eigendecomposition of W's smaller side, beside the top directions of the sum.
    Source: Shuttleworth et al., LoRA vs full fine-tuning, arXiv 2410.21228, section 3 and algorithm
        1.

    >>> W = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> intruder_dimensions(W, torch.ones(1, 3), 9 * torch.ones(3, 1), top=1, threshold=0.6)
    1
    """
    W = W.detach().double()
    changed = W + scale * (B.detach().double() @ A.detach().double())
    own = torch.linalg.svd(W, full_matrices=False)[0]
    new = randomised_svd(changed, min(top, *W.shape))[0][:, :top]
    return int(((own.mT @ new).abs().amax(0) < threshold).sum())


def _same_width(A1: Tensor, A2: Tensor) -> None:
    if A1.ndim != 2 or A2.ndim != 2 or A1.shape[1] != A2.shape[1]:
        raise SpecError(
            f"Two matrices of one width are needed: {tuple(A1.shape)} and {tuple(A2.shape)}."
        )
