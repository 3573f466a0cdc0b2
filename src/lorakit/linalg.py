"""Pieces of every decomposition here: an SVD as two factors, and the directions that matter most of
a large matrix.
"""

import torch
from torch import Tensor


def shared_evenly(U: Tensor, S: Tensor, Vh: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B of the first directions of an SVD, each with the root of the singular values.

    Args:
        U: (out, k), or a stack of such; S and Vh likewise.
        S: (k,), descending.
        Vh: (k, in).
        rank: how many directions are kept.

    Returns:
        A (rank, in) and B (out, rank) with `B @ A = U[:, :rank] @ diag(S[:rank]) @ Vh[:rank]`.

    >>> A, B = shared_evenly(torch.eye(2), torch.tensor([4.0, 1.0]), torch.eye(2), rank=1)
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
