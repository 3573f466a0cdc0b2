"""Checks of the values of tensors that go into a file or come out of one."""

import torch
from torch import Tensor

from lorakit.text import dtype_name


def value_fault(tensor: Tensor) -> str:
    """Return why a tensor cannot be a part of an adapter, or an empty string.

    >>> value_fault(torch.tensor([1.0, float("nan")]))
    '1 of 2 values are NaN or infinite'
    """
    if tensor.is_meta:
        return "has no values: it is on the meta device"
    if not tensor.is_floating_point():
        return f"is {dtype_name(tensor.dtype)}: a floating dtype is needed"
    unusable = int((~torch.isfinite(tensor)).sum())
    if unusable == 0:
        return ""
    return f"{unusable} of {tensor.numel()} values are NaN or infinite"
