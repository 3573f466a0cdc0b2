"""Weights that several layers share: one parameter, or several that show the same memory."""

from collections.abc import Hashable

import torch
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)  # other classes may hold their values elsewhere


def memory_of(parameter: Tensor) -> Hashable:
    """Return a key that two parameters have in common if they show the same values in memory.

    Weights that overlap in another way, such as a transposed view, have different keys.

    >>> weight = nn.Parameter(torch.ones(2, 3))
    >>> memory_of(nn.Parameter(weight)) == memory_of(weight)
    True
    >>> memory_of(nn.Parameter(weight.T)) == memory_of(weight)
    False
    """
    if type(parameter) not in PLAIN or parameter.is_meta or not parameter.numel():
        return id(parameter)
    if parameter.layout != torch.strided:
        return id(parameter)
    layout = (tuple(parameter.shape), parameter.stride(), parameter.dtype)
    return (parameter.device, parameter.data_ptr(), *layout)
