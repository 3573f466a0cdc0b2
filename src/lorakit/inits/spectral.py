"""Starts from the base's own matrix: A and B are a part of it.

The change is the difference to this start (deltas/offset.py).

Source: Golub and Van Loan, Matrix Computations, 4th ed., sections 2.4 (M = U S V) and 5.2
    (M = Q R).
"""

import torch
from torch import Tensor
from torch.linalg import qr, svd

from lorakit.linalg import leading_range, split_singular_values, widen
from lorakit.spec import Settings

OVERSAMPLE = 8  # directions beyond the rank in the randomised SVD
PASSES = 4  # over the matrix and back in the randomised SVD


def pissa(M: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return A and B with `scale * B @ A` the best approximation of M with this rank.

    It is the part of M of its `rank` largest singular values.

    Args:
        M: (out, in), floating; or a stack of such.
        settings: rank and scale.

    Returns:
        A (rank, in) and B (out, rank), float32 or better; the singular values are shared evenly
        between them.

    Source: Meng et al., PiSSA, arXiv 2404.02948, equations 2 and 3; divided by the scale, as the
        official code does.

    >>> from lorakit import Spec
    >>> settings = Spec(rank=1, alpha=2.0, init="pissa").settings("any")
    >>> A, B = pissa(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), settings)
    >>> (2.0 * B @ A).round(decimals=4).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    U, S, Vh = svd(widen(M), full_matrices=False)
    return _split(U, S, Vh, settings)


def pissa_fast(
    M: Tensor,
    settings: Settings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return nearly the result of `pissa`, from a few products with M instead of its full SVD.

    For weights whose singular values fall as slowly as random ones, the error is at most 1 % above
    the least possible (Frobenius norm); the faster the singular values fall, the smaller it is.

    Args:
        M: (out, in), floating; or a stack of such.
        settings: rank and scale.
        generator: of the random directions, on the CPU.

    Source: Halko, Martinsson, Tropp, arXiv 0909.4061, algorithms 4.4 and 5.1; PiSSA, section 3.
    """
    M = widen(M)
    outputs, inputs = M.shape[-2:]
    count = min(settings.rank + OVERSAMPLE, outputs, inputs)
    size = (*M.shape[:-2], inputs, count)
    random = torch.randn(size, generator=generator, dtype=torch.float32)
    Q = leading_range(M, random.to(M), PASSES)
    U, S, Vh = svd(Q.mT @ M, full_matrices=False)
    return _split(Q @ U, S, Vh, settings)


def olora(M: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the first rows of R as A and the first, orthonormal columns of Q as B, with M = Q R.

    Args:
        M: (out, in), floating; or a stack of such.
        settings: rank.

    Source: Büyükakyüz, OLoRA, arXiv 2406.01775, section 3 and algorithm 1.
    """
    rank = settings.rank
    Q, R = qr(widen(M))
    A = R[..., :rank, :]
    B = Q[..., :rank]
    return A.contiguous(), B.contiguous()


def _split(U: Tensor, S: Tensor, Vh: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return A and B with `scale * B @ A` the part of an SVD with the first directions."""
    size = abs(settings.scale)
    sign = 1 if settings.scale > 0 else -1
    A, B = split_singular_values(U, S / size, Vh, settings.rank)
    return A, B * sign
