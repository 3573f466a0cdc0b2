"""Pieces of every decomposition here: an SVD as two factors, and the directions that matter most of
a large matrix.
"""

import torch
from torch import Tensor

from lorakit.errors import SpecError

DENSE = 512  # below this many rows or columns a whole SVD is cheaper than one that is drawn


def split_singular_values(U: Tensor, S: Tensor, Vh: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B of the first directions of an SVD, each with the root of the singular values.

    Args:
        U: (out, k), or a stack of such; S and Vh likewise.
        S: (k,), descending.
        Vh: (k, in).
        rank: how many directions are kept.

    Returns:
        A (rank, in) and B (out, rank) with `B @ A = U[:, :rank] @ diag(S[:rank]) @ Vh[:rank]`.

    >>> A, B = split_singular_values(torch.eye(2), torch.tensor([4.0, 1.0]), torch.eye(2), rank=1)
    >>> A.tolist(), B.tolist()
    ([[2.0, 0.0]], [[2.0], [0.0]])
    """
    root = S[..., :rank].sqrt()
    return root.unsqueeze(-1) * Vh[..., :rank, :], U[..., :rank] * root.unsqueeze(-2)


def leading_range(M: Tensor, draw: Tensor, passes: int) -> Tensor:
    """Return orthonormal columns that nearly hold what M does to its leading directions.

    Args:
        M: (out, in), or a stack of such.
        draw: (in, k), random; of M's dtype and device.
        passes: over M and back; each sharpens the spectrum.

    Returns:
        (out, k).

    Source: Halko, Martinsson, Tropp, arXiv 0909.4061, algorithm 4.4.
    """
    Q = torch.linalg.qr(M @ draw).Q
    for _ in range(passes):
        Q = torch.linalg.qr(M @ torch.linalg.qr(M.mT @ Q).Q).Q
    return Q


def singular_values(A: Tensor, B: Tensor, scale: float = 1.0) -> Tensor:
    """Return the singular values of `scale * B @ A` without building it.

    With thin QR factors B = Qb Rb and A.T = Qa Ra the product is Qb (Rb Ra.T) Qa.T, and orthonormal
    columns change no
    singular value: those of the small core Rb Ra.T are the answer.

    Args:
        A: (rank, in), any floating dtype. The factor next to the input.
        B: (out, rank), same rank and device as A.
        scale: alpha / rank, or the rule the adapter was trained with; its sign is ignored.

    Returns:
        (min(rank, out, in),) float64, descending, on A's device; one row a matrix of a stack.

    Raises:
        SpecError: the ranks of A and B differ; the message names both shapes.

    Cost: O(rank**2 (out + in)); the dense SVD is O(out in min(out, in)).
    Source: Golub and Van Loan, Matrix Computations, 4th ed., section 5.2 (QR).

    >>> A = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    >>> B = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> singular_values(A, B, scale=0.5).tolist()
    [2.0, 1.5]
    """
    _check(A, B)
    Ra = torch.linalg.qr(A.detach().double().mT, mode="r").R
    Rb = torch.linalg.qr(B.detach().double(), mode="r").R
    return torch.linalg.svdvals(Rb @ Ra.mT) * abs(scale)


def svd_of_product(A: Tensor, B: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S, Vh with `scale * B @ A = U @ diag(S) @ Vh`, without building the product.

    Args:
        A: (rank, in), any floating dtype.
        B: (out, rank).
        scale: what multiplies the product; a negative one turns U.

    Returns:
        U (out, k), S (k,) descending and Vh (k, in), float64, k = min(rank, out, in).

    Raises:
        SpecError: the ranks of A and B differ.

    >>> U, S, Vh = svd_of_product(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    >>> S.tolist(), (U * S @ Vh).abs().round(decimals=6).tolist()
    ([10.0], [[0.0, 6.0], [0.0, 8.0]])
    """
    _check(A, B)
    Qa, Ra = torch.linalg.qr(A.detach().double().mT)
    Qb, Rb = torch.linalg.qr(B.detach().double())
    U, S, Vh = torch.linalg.svd(Rb @ Ra.mT, full_matrices=False)
    return Qb @ U * (1 if scale >= 0 else -1), S * abs(scale), Vh @ Qa.mT


def product_norm(A: Tensor, B: Tensor) -> float:
    """Return the Frobenius norm of `B @ A` from the factors, of all matrices together where they
    are stacked.

    >>> product_norm(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    10.0
    """
    return float(singular_values(A, B).norm())


def factorize(M: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B with B A as near to M as a product of this rank can be, and M itself where its
    rank is no higher.

    This is what a change of weights is written as; it is not how LoRA finds one, which learns A and
    B by gradient descent.

    Args:
        M: (out, in), any floating dtype.
        rank: from 1 to min(out, in).

    Returns:
        A (rank, in) and B (out, rank), float64, on M's device; the singular values are shared
        evenly between them.

    Raises:
        SpecError: M is no matrix, or the rank is out of range.

    Cost: one dense SVD, O(out in min(out, in)).
    Source: Eckart and Young, 1936: the error is the root of the sum of the squares of the singular
        values left out.

    >>> A, B = factorize(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), rank=1)
    >>> (B @ A).abs().round(decimals=6).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    if (
        M.ndim != 2
        or isinstance(rank, bool)
        or not isinstance(rank, int)
        or not 1 <= rank <= min(M.shape)
    ):
        most = f", at most {min(M.shape)}" if M.ndim == 2 else ""
        raise SpecError(
            f"A matrix and a rank of at least 1{most} are needed: M is {tuple(M.shape)}, rank is {rank!r}."
        )
    U, S, Vh = torch.linalg.svd(M.detach().double(), full_matrices=False)
    return split_singular_values(U, S, Vh, rank)


def randomised_svd(
    M: Tensor, rank: int, *, oversample: int = 10, rounds: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S, Vh of the leading directions of a large matrix by a randomised range finder;
    whole SVD of a small one.

    M is projected on the drawn directions exactly, and no value that comes back is above M's own.
    So the first r of k leave the error |M|^2 - sum(S[:r]^2), squared, and no product of rank r
    leaves less than sum(S[r:]^2): a bound from both sides.

    Args:
        M: (out, in), any floating dtype; a stack is taken matrix by matrix.
        rank: how many directions are wanted; at most min(out, in).
        oversample: how many more are drawn.
        rounds: power iterations: each sharpens the spectrum.
        seed: of the draw.

    Returns:
        U (out, k), S (k,), Vh (k, in) in float64, k = rank + oversample directions at most.

    Source: Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4.

    >>> randomised_svd(torch.diag(torch.tensor([1.0, 3.0, 2.0])), rank=2)[1].tolist()
    [3.0, 2.0, 1.0]
    """
    small = min(M.shape[-2:])
    width = rank + oversample
    if small <= DENSE or width * 4 > small:
        return torch.linalg.svd(M.detach().double(), full_matrices=False)
    # In float32 the draw costs half; only the projection's result needs to be exact.
    draw = torch.randn(
        *M.shape[:-2], M.shape[-1], width, generator=torch.Generator().manual_seed(seed)
    ).to(M.device)
    Q = torch.linalg.qr(leading_range(M.detach().float(), draw, rounds).double()).Q
    U, S, Vh = torch.linalg.svd(Q.mT @ M.detach().double(), full_matrices=False)
    return Q @ U, S, Vh


def _check(A: Tensor, B: Tensor) -> None:
    if A.ndim < 2 or A.ndim != B.ndim or A.shape[-2] != B.shape[-1] or A.shape[:-2] != B.shape[:-2]:
        raise SpecError(
            f"A (rank, in) and B (out, rank) must share a rank: A is {tuple(A.shape)}, B is {tuple(B.shape)}."
        )
