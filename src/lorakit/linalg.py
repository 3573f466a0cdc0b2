"""Singular value decompositions: of a product of factors, and of large matrices.

All functions take one matrix or a stack of matrices (leading axes) unless their Args say otherwise.

Source: Golub and Van Loan, Matrix Computations, 4th ed., sections 2.4 (U, S, V) and 5.2 (Q, R).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import qr, svd, svdvals

from lorakit.errors import SpecError
from lorakit.spec import is_whole

FULL_SVD_SIZE = 512  # up to this many rows or columns a full SVD is cheaper than a randomised one
FULL_SVD_SHARE = 4  # the same if a quarter of all directions is needed

Factors = tuple[Tensor, Tensor]  # A (rank, in) and B (out, rank) of a product B A


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float32, or a wider dtype if one of the tensors has it.

    >>> wide_dtype(torch.zeros(1, dtype=torch.bfloat16)), wide_dtype(torch.zeros(1).double())
    (torch.float32, torch.float64)
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def widen(M: Tensor) -> Tensor:
    """Return M in float32, or float64 if it is."""
    return M.to(wide_dtype(M))


def multiply_wide(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right, computed in float32, or float64 if a factor is.

    >>> left, right = torch.tensor([[256.0, 1.0]]), torch.ones(2, 1)
    >>> multiply_wide(left.bfloat16(), right.bfloat16())
    tensor([[257.]])
    """
    wide = wide_dtype(left, right)
    return left.to(wide) @ right.to(wide)


def check_factors(A: Tensor, B: Tensor) -> None:
    """Raise SpecError if A (rank, in) and B (out, rank) do not share a rank, or a stack."""
    is_matrix = A.ndim >= 2 and A.ndim == B.ndim
    if not is_matrix or A.shape[-2] != B.shape[-1] or A.shape[:-2] != B.shape[:-2]:
        raise SpecError(
            "A (rank, in) and B (out, rank) must share a rank: "
            f"A is {tuple(A.shape)}, B is {tuple(B.shape)}."
        )


class Svd(NamedTuple):
    """The thin singular value decomposition `U @ diag(S) @ Vh` of a matrix (out, in).

    Attributes:
        U: (out, k), orthonormal columns.
        S: (k,), descending.
        Vh: (k, in), orthonormal rows.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor


def thin_svd(M: Tensor) -> Svd:
    """Return the singular value decomposition in float64, with k = min(out, in)."""
    U, S, Vh = svd(_to_float64(M), full_matrices=False)
    return Svd(U, S, Vh)


def split_singular_values(U: Tensor, S: Tensor, Vh: Tensor, rank: int) -> Factors:
    """Return A and B of the first `rank` directions of an SVD, each with the root of S.

    Args:
        U: (out, k), orthonormal columns.
        S: (k,), descending.
        Vh: (k, in), orthonormal rows.
        rank: number of directions to keep.

    Returns:
        A (rank, in) and B (out, rank) with `B @ A = U[:, :rank] @ diag(S[:rank]) @ Vh[:rank]`.

    >>> A, B = split_singular_values(torch.eye(2), torch.tensor([4.0, 1.0]), torch.eye(2), rank=1)
    >>> A.tolist(), B.tolist()
    ([[2.0, 0.0]], [[2.0], [0.0]])
    """
    root = S[..., :rank].sqrt()
    A = root.unsqueeze(-1) * Vh[..., :rank, :]
    B = U[..., :rank] * root.unsqueeze(-2)
    return A, B


def leading_range(M: Tensor, random: Tensor, passes: int) -> Tensor:
    """Return an orthonormal basis of the approximate range of M's leading directions.

    Args:
        M: (out, in).
        random: (in, k), of M's dtype and device.
        passes: power iterations; each makes the basis more accurate.

    Returns:
        (out, k).

    Source: Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4 (Q; P is its Q tilde).
    """
    Q, _ = qr(M @ random)
    for _ in range(passes):
        P, _ = qr(M.mT @ Q)
        Q, _ = qr(M @ P)
    return Q


def singular_values(A: Tensor, B: Tensor, scale: float = 1.0) -> Tensor:
    """Return the singular values of `scale * B @ A` without building it.

    With thin QR factors B = Qb Rb and A.T = Qa Ra the product is Qb (Rb Ra.T) Qa.T, and orthonormal
    columns change no singular value: those of the small core Rb Ra.T are the answer.

    Args:
        A: (rank, in), any floating dtype. The factor next to the input.
        B: (out, rank), same rank and device as A.
        scale: alpha / rank, or the rule the adapter was trained with; its sign is ignored.

    Returns:
        (min(rank, out, in),) float64, descending, on A's device; (stack, min(rank, out, in)) of a
        stack.

    Raises:
        SpecError: the ranks of A and B differ; the message names both shapes.

    Cost: O(rank**2 (out + in)); the dense SVD is O(out in min(out, in)).
    Source: Golub and Van Loan, Matrix Computations, 4th ed., section 5.2.

    >>> A = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    >>> B = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> singular_values(A, B, scale=0.5).tolist()
    [2.0, 1.5]
    """
    check_factors(A, B)
    _, Ra = qr(_to_float64(A).mT, mode="r")
    _, Rb = qr(_to_float64(B), mode="r")
    core = Rb @ Ra.mT
    return svdvals(core) * abs(scale)


def svd_of_product(A: Tensor, B: Tensor, scale: float = 1.0) -> Svd:
    """Return U, S, Vh with `scale * B @ A = U @ diag(S) @ Vh`, without building the product.

    Args:
        A: (rank, in), any floating dtype.
        B: (out, rank).
        scale: factor of the product; a negative one changes the sign of U.

    Returns:
        U (out, k), S (k,) descending and Vh (k, in), float64, k = min(rank, out, in).

    Raises:
        SpecError: the ranks of A and B differ.

    >>> U, S, Vh = svd_of_product(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    >>> S.tolist(), (U * S @ Vh).abs().round(decimals=6).tolist()
    ([10.0], [[0.0, 6.0], [0.0, 8.0]])
    """
    check_factors(A, B)
    Qa, Ra = qr(_to_float64(A).mT)
    Qb, Rb = qr(_to_float64(B))
    core = Rb @ Ra.mT
    U, S, Vh = thin_svd(core)
    U = Qb @ U
    if scale < 0:
        U = -U
    return Svd(U, S * abs(scale), Vh @ Qa.mT)


def product_norm(A: Tensor, B: Tensor) -> float:
    """Return the Frobenius norm of `B @ A` from the factors; of a stack, of all matrices together.

    >>> product_norm(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    10.0
    """
    return float(singular_values(A, B).norm())


def factorize(M: Tensor, rank: int) -> Factors:
    """Return A and B of the given rank whose product B A is nearest to M.

    B A equals M if the rank of M is not higher. This factorises a known change of weights; LoRA
    learns A and B by gradient descent instead.

    Args:
        M: (out, in), any floating dtype; no stack.
        rank: from 1 to min(out, in).

    Returns:
        A (rank, in) and B (out, rank), float64, on M's device; each has the root of the singular
        values.

    Raises:
        SpecError: M is not a matrix, or the rank is out of range.

    Cost: one dense SVD, O(out in min(out, in)).
    Source: Eckart and Young, 1936: with M = U S V the error is the root of the sum of the squares
        of the singular values left out.

    >>> A, B = factorize(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), rank=1)
    >>> (B @ A).abs().round(decimals=6).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    largest = min(M.shape) if M.ndim == 2 else 0
    if not is_whole(rank, least=1) or rank > largest:
        limit = f", at most {largest}" if M.ndim == 2 else ""
        raise SpecError(
            f"A matrix and a rank of at least 1{limit} are needed: "
            f"M is {tuple(M.shape)}, rank is {rank!r}."
        )
    U, S, Vh = thin_svd(M)
    return split_singular_values(U, S, Vh, rank)


def randomised_svd(
    M: Tensor, rank: int, *, oversample: int = 10, passes: int = 2, seed: int = 0
) -> Svd:
    """Return U, S, Vh of the leading directions of a large matrix, or the full SVD of a small one.

    M is projected exactly on the directions found, so no returned value is above M's own. Hence the
    first r of k directions leave the squared error |M|^2 - sum(S[:r]^2), and no product of rank r
    leaves less than sum(S[r:]^2): an upper and a lower bound.

    Args:
        M: (out, in), any floating dtype.
        rank: number of directions needed; at most min(out, in).
        oversample: number of further random directions.
        passes: power iterations; each makes the directions more accurate.
        seed: of the random directions.

    Returns:
        U (out, k), S (k,), Vh (k, in) in float64. k = rank + oversample, or min(out, in) if that is
        cheaper.

    Source: Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4 (Q) and 5.1 (U, S, V).

    >>> randomised_svd(torch.diag(torch.tensor([1.0, 3.0, 2.0])), rank=2)[1].tolist()
    [3.0, 2.0, 1.0]
    """
    M = M.detach()
    count = rank + oversample
    smaller_side = min(M.shape[-2:])
    if smaller_side <= FULL_SVD_SIZE or count * FULL_SVD_SHARE > smaller_side:
        return thin_svd(M)
    random = _random_directions(M, count, seed)
    # The range in float32 costs half; only the projection has to be exact.
    basis = leading_range(M.float(), random, passes)
    Q, _ = qr(basis.double())
    projection = Q.mT @ M.double()
    U, S, Vh = thin_svd(projection)
    return Svd(Q @ U, S, Vh)


def _to_float64(M: Tensor) -> Tensor:
    return M.detach().double()


def _random_directions(M: Tensor, count: int, seed: int) -> Tensor:
    """Return random vectors (in, count) in float32, drawn on the CPU, on M's device."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*M.shape[:-2], M.shape[-1], count)
    return torch.randn(shape, generator=generator).to(M.device)
