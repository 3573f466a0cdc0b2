"""Precision on GPUs: bfloat16 where the card computes in it, else float16 with a scaled loss."""

import torch

NATIVE_BFLOAT16 = (8, 0)  # compute capability; a T4, an RTX 20xx and a V100 have less


def has_bfloat16(device: torch.device) -> bool:
    """Return True if a GPU computes in bfloat16; others emulate it, many times slower.

    `torch.cuda.is_bf16_supported()` is True for both.
    """
    return torch.cuda.get_device_capability(device) >= NATIVE_BFLOAT16


def gpu_dtype(*, bfloat16: bool, trains_base: bool) -> torch.dtype:
    """Return the dtype of a base on a GPU for which none is given.

    Args:
        bfloat16: True if the GPU computes in bfloat16.
        trains_base: True if parameters of the base train in full. In float16 their gradients could
            not be scaled.
    """
    if bfloat16:
        return torch.bfloat16
    return torch.float32 if trains_base else torch.float16


def gpu_autocast(dtype: torch.dtype, *, bfloat16: bool, is_chosen: bool) -> str:
    """Return the mixed precision of training on a GPU for which none is given.

    Args:
        dtype: of the base.
        bfloat16: True if the GPU computes in bfloat16.
        is_chosen: True if the user chose the dtype of the base.

    Returns:
        "fp16", with a scaled loss, or "no".

    >>> gpu_autocast(torch.float16, bfloat16=True, is_chosen=True)
    'fp16'
    >>> gpu_autocast(torch.float32, bfloat16=False, is_chosen=False)
    'fp16'
    >>> gpu_autocast(torch.float32, bfloat16=False, is_chosen=True)
    'no'
    """
    needs_scale = dtype == torch.float16
    is_slow = not bfloat16 and not is_chosen
    return "fp16" if needs_scale or is_slow else "no"
