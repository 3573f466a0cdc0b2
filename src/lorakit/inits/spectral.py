"""Starts from the base's own matrix: A and B take a part of it, which the change is then measured
from (deltas/moved.py).
"""

import torch
from torch import Tensor

from lorakit.linalg import leading_range, split_singular_values
from lorakit.spec import Settings

OVERSAMPLE, PASSES = (
    8,
    4,
)  # of the randomised SVD: directions beyond the rank, and passes over the matrix and back


def pissa(M: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return A and B with `scale * B A` the part of M of its `rank` largest singular values: no
    product is nearer to M.

    Args:
        M: (out, in), floating; or a stack of such.
        settings: rank and scale.

    Returns:
        A (rank, in) and B (out, rank), float32 or better; the singular values are shared evenly
        between them.

    Source: Meng et al., PiSSA, arXiv 2404.02948, equations 2 and 3; divided by the scale, as the
        official code does.

    >>> A, B = pissa(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), Settings(rank=1, alpha=2.0, scale_rule="alpha/rank", dropout=0.0,
    ...                                                               init="pissa", init_std=None))
    >>> (2.0 * B @ A).round(decimals=4).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    U, S, Vh = torch.linalg.svd(wide(M), full_matrices=False)
    return _shared(U, S, Vh, settings)


def pissa_fast(M: Tensor, settings: Settings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return what `pissa` does, nearly, from a few products with M instead of its whole SVD.

    The part left out is larger than the least possible by at most the factor 1 + 1 % (Frobenius
    norm) for weights as slowly falling as random ones; the faster the singular values fall, the
    nearer.

    Args:
        M: (out, in), floating; or a stack of such.
        settings: rank and scale.
        generator: of the random directions, on the CPU.

    Source: Halko, Martinsson, Tropp, arXiv 0909.4061, algorithms 4.4 and 5.1; PiSSA, section 3.
    """
    M = wide(M)
    count = min(settings.rank + OVERSAMPLE, *M.shape[-2:])
    random = torch.randn(
        (*M.shape[:-2], M.shape[-1], count), generator=generator, dtype=torch.float32
    ).to(M)
    Q = leading_range(M, random, PASSES)
    U, S, Vh = torch.linalg.svd(Q.mT @ M, full_matrices=False)
    return _shared(Q @ U, S, Vh, settings)


def olora(M: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return B = the first columns of Q, which are orthonormal, and A = the first rows of R, of M =
    Q R.

    Args:
        M: (out, in), floating; or a stack of such.
        settings: rank.

    Source: Büyükakyüz, OLoRA, arXiv 2406.01775, section 3 and algorithm 1.
    """
    Q, R = torch.linalg.qr(wide(M))
    return R[..., : settings.rank, :].contiguous(), Q[..., : settings.rank].contiguous()


def wide(M: Tensor) -> Tensor:
    """Return M in float32, or float64 where it is."""
    return M.to(torch.promote_types(M.dtype, torch.float32))


def _shared(U: Tensor, S: Tensor, Vh: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    A, B = split_singular_values(U, S / abs(settings.scale), Vh, settings.rank)
    return A, B * (1 if settings.scale > 0 else -1)
