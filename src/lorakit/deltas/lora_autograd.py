"""y + scale * dropout(x) A^T B^T as one operation that saves only x for the backward pass.

The plain expression saves an input of A, a mask and two outputs for each layer, and copies them to
float32 if the factors are float32. Here the change is added into y, the factors are cast to y's
dtype (as mixed precision does anyway), and dropout is computed again from its seed. The backward
pass reads x, which neighbouring layers share, and computes x A^T again: rank / out of the layer's
own product.
"""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd import forward_ad

PROBABILITY_STEPS = 1 << 16  # a dropout probability is rounded to a multiple of 1 / steps
INTEGERS = {2: np.int16, 4: np.int32, 8: np.int64}  # by the bytes of a value
# Probability, seed, and whether the tensors have shapes but no values.
Drop: TypeAlias = tuple[float, int, bool]


def is_traced() -> bool:
    """Return True if operations are recorded or transformed: torch.compile, torch.func, jit.trace.

    Forward-mode differentiation counts too.
    """
    is_recorded = torch.compiler.is_compiling() or torch._C._is_tracing()
    is_forward_mode = forward_ad._current_level >= 0
    return is_recorded or is_forward_mode or torch._C._are_functorch_transforms_active()


def is_watched() -> bool:
    """Return True if a dispatch mode sees every operation.

    It may keep their results, or run them on tensors without values.
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
    in_place: bool = False,
) -> Tensor:
    """Return y + scale * dropout(x) A^T B^T.

    Args:
        y: (..., out); its dtype is that of the computation.
        x: (..., in), of any floating dtype.
        A: (rank, in).
        B: (out, rank).
        scale: factor of the product.
        dropout: probability with which a value of x is dropped, from 0 to 1; the others are divided
            by 1 - dropout.
        in_place: whether y may be overwritten: no one else refers to it, and autograd saved nothing
            of it.

    Returns:
        (..., out), of y's dtype; y itself if it was overwritten.

    >>> A, B = torch.ones(1, 3), torch.ones(2, 1)
    >>> add_low_rank(torch.zeros(1, 2), torch.ones(1, 3), A, B, 2.0).tolist()
    [[6.0, 6.0]]
    """
    watched = is_watched()
    in_place = in_place and not watched
    without_values = watched and is_fake(x)  # then no random numbers are used up
    seed = int(torch.randint(1 << 62, ())) if dropout and not without_values else 0
    factor = scale / (1 - dropout) if dropout < 1 else 0.0
    drop = (dropout, seed, without_values)
    if torch.is_grad_enabled() and (
        y.requires_grad or x.requires_grad or A.requires_grad or B.requires_grad
    ):
        return AddLowRank.apply(y, x, A, B, factor, drop, in_place)
    return _add_product(y, x, A, B, factor, drop, in_place)


def _add_product(
    y: Tensor, x: Tensor, A: Tensor, B: Tensor, factor: float, drop: Drop, in_place: bool
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
    # No name for the masked rows: they are freed before `out` is made.
    projected = apply_mask(rows, dropout_mask(rows, *drop)) @ A.to(y.dtype).T
    out = y if in_place else y.clone(memory_format=torch.contiguous_format)
    out.view(-1, out.shape[-1]).addmm_(projected, (B * factor).to(y.dtype).T)
    return out


def dropout_mask(
    like: Tensor, dropout: float, seed: int, without_values: bool = False
) -> Tensor | None:
    """Return a mask for `apply_mask`; None without dropout.

    It is the same for the same seed, shape, dtype, device and `without_values`.
    """
    if not dropout:
        return None
    if like.device.type != "cpu" or without_values:
        generator = torch.Generator(like.device).manual_seed(seed)
        return torch.rand(like.shape, device=like.device, generator=generator) >= dropout
    # On a CPU torch's dropout takes longer than the product that follows. Here each value gets 16
    # random bits, drawn 64 at a time, and an integer mask: all zeros to drop it, all ones to keep.
    count = like.numel()
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    keep = words.view(np.uint16)[:count] >= round(dropout * PROBABILITY_STEPS)
    mask = -keep.astype(INTEGERS[like.element_size()])
    return torch.from_numpy(mask).view(like.shape)


def apply_mask(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Return the values with zeros where the mask drops them."""
    if mask is None:
        return rows
    if mask.dtype == torch.bool:
        return rows * mask
    if torch.is_grad_enabled():  # a backward pass that is differentiated again
        return rows.masked_fill(mask == 0, 0)
    return (rows.contiguous().view(mask.dtype) & mask).view(rows.dtype)


class Context(Protocol):
    """The context of AddLowRank between its two passes."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    factor: float
    drop: Drop
    dtype: torch.dtype

    def save_for_backward(self, *tensors: Tensor) -> None: ...

    def mark_dirty(self, *tensors: Tensor) -> None: ...


class AddLowRank(torch.autograd.Function):
    """`_add_product` with its gradients."""

    @staticmethod
    def forward(
        ctx: Context,
        y: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        factor: float,
        drop: Drop,
        in_place: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, A, B)
        ctx.factor = factor
        ctx.drop = drop
        ctx.dtype = y.dtype
        out = _add_product(y, x, A, B, factor, drop, in_place)
        if in_place:
            ctx.mark_dirty(y)
        return out

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> Sequence[Tensor | None]:
        x, A, B = ctx.saved_tensors
        grad_y, dtype = grads[0], ctx.dtype
        needs_y, needs_x, needs_A, needs_B = ctx.needs_input_grad[:4]
        grad_rows = grad_y.reshape(-1, grad_y.shape[-1]).to(dtype)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        mask = dropout_mask(rows, *ctx.drop)
        cast_A = A.to(dtype)
        grad_projected = grad_rows @ (B * ctx.factor).to(dtype)  # (rows, rank)
        grad_x = grad_A = grad_B = None
        if needs_A or needs_B:
            dropped = apply_mask(rows, mask)
            if needs_A:
                grad_A = (grad_projected.T @ dropped).to(A.dtype)
            if needs_B:
                # A fifth faster than grad_rows.T @ projected; without a name, which would keep it.
                grad_B = ((dropped @ cast_A.T).T @ grad_rows).T.to(B.dtype) * ctx.factor
        if needs_x:
            grad_x = apply_mask(grad_projected @ cast_A, mask).to(x.dtype).view(x.shape)
        return grad_y if needs_y else None, grad_x, grad_A, grad_B, None, None, None
