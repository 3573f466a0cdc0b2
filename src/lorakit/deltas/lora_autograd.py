"""y + scale * drop(x) A^T B^T in one operation: added into y, nothing kept but x, and dropout
replayed from its seed.

The plain expression keeps an input of A, a mask and two outputs a layer, and copies them to float32
where the factors are float32. Here the factors go to y's dtype, which is what mixed precision
computes anyway; the backward pass reads x, which the
layers beside this one share, and makes everything else again: h = x A^T costs rank / out of the
    layer's own product.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

STEPS = 1 << 16  # in how many steps a probability is counted


def is_traced() -> bool:
    """Tell whether operations are recorded or rewritten rather than run: torch.compile, torch.func."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def is_watched() -> bool:
    """Tell whether a dispatch mode sees every operation: it may keep what they give, or run them on
    tensors without values.
    """
    return torch._C._len_torch_dispatch_stack() > 0


def add_low_rank(
    y: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float,
    dropout: float = 0.0,
    *,
    into: bool = False,
) -> Tensor:
    """Return y + scale * drop(x) A^T B^T.

    Args:
        y: (..., out), of the dtype that is computed in.
        x: (..., in), of any floating dtype.
        A: (rank, in).
        B: (out, rank).
        scale: what multiplies the product.
        dropout: probability with which a value of x is dropped, from 0 to 1; the rest is divided by
            what is left.
        into: whether y may be overwritten: nobody else has it, and nothing was kept of it.

    Returns:
        (..., out), of y's dtype; y itself where it was overwritten.

    >>> add_low_rank(torch.zeros(1, 2), torch.ones(1, 3), torch.ones(1, 3), torch.ones(2, 1), 2.0).tolist()
    [[6.0, 6.0]]
    """
    watched = is_watched()
    into = into and not watched
    blind = watched and is_fake(x)  # tensors have no values: no random numbers are spent
    seed = int(torch.randint(1 << 62, ())) if dropout and not blind else 0
    factor = scale / (1 - dropout) if dropout < 1 else 0.0
    if not torch.is_grad_enabled() or not (
        y.requires_grad or x.requires_grad or A.requires_grad or B.requires_grad
    ):
        return _sum(y, x, A, B, factor, (dropout, seed, blind), into)
    return _Add.apply(y, x, A, B, factor, (dropout, seed, blind), into)


def _sum(
    y: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    factor: float,
    drop: tuple[float, int, bool],
    into: bool,
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
    h = _dropped(rows, _mask(rows, *drop)) @ A.to(y.dtype).T
    out = y if into else y.clone(memory_format=torch.contiguous_format)
    out.view(-1, out.shape[-1]).addmm_(h, (B * factor).to(y.dtype).T)
    return out


BITS = {
    2: (torch.int16, np.int16),
    4: (torch.int32, np.int32),
    8: (torch.int64, np.int64),
}  # by bytes of a value


def _mask(like: Tensor, dropout: float, seed: int, blind: bool = False) -> Tensor | None:
    """Return what `_dropped` drops values by; the same for the same seed, shape, dtype, device and
    `blind`.
    """
    if not dropout:
        return None
    if like.device.type != "cpu" or blind:
        generator = torch.Generator(like.device).manual_seed(seed)
        return torch.rand(like.shape, device=like.device, generator=generator) >= dropout
    # On a CPU torch's dropout takes longer than the product it stands before. Here 16 random bits
    # are drawn a value, 64 at once, and a value is dropped by the bits of its mask: 0 is all zeros,
    # and "keep" all ones.
    drawn = np.random.SFC64(seed).random_raw(-(-like.numel() // 4)).view(np.uint16)[: like.numel()]
    return torch.from_numpy(
        -(drawn >= round(dropout * STEPS)).astype(BITS[like.element_size()][1])
    ).view(like.shape)


def _dropped(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Return the values with those dropped that the mask says."""
    if mask is None:
        return rows
    if mask.dtype == torch.bool:
        return rows * mask
    return (rows.contiguous().view(mask.dtype) & mask).view(rows.dtype)


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        factor: float,
        drop: tuple[float, int, bool],
        into: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, A, B)
        ctx.told, ctx.dtype = (factor, drop), y.dtype
        out = _sum(y, x, A, B, factor, drop, into)
        if into:
            ctx.mark_dirty(y)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x, A, B), (factor, drop), dtype, g = ctx.saved_tensors, ctx.told, ctx.dtype, grads[0]
        to_y, to_x, to_A, to_B = ctx.needs_input_grad[:4]
        rows, a, gx, gA, gB = g.reshape(-1, g.shape[-1]).to(dtype), A.to(dtype), None, None, None
        back = rows @ (B * factor).to(dtype)  # (m, rank)
        inputs = x.reshape(-1, x.shape[-1]).to(dtype)
        mask = _mask(inputs, *drop)
        if to_A or to_B:
            dropped = _dropped(inputs, mask)
            gA = (back.T @ dropped).to(A.dtype) if to_A else None
            gB = (
                ((dropped @ a.T).T @ rows).T.to(B.dtype) * factor if to_B else None
            )  # sooner than rows.T @ (…), by a fifth
        if to_x:
            gx = _dropped(back @ a, mask).to(x.dtype).view(x.shape)
        return g if to_y else None, gx, gA, gB, None, None, None
