"""Linear layers whose matrix is kept in int8 or 4 bits, by torchao or bitsandbytes: the base stays as it is, and frozen.

The forward is the quantised layer's own output plus the factored change, so it costs what it costs elsewhere. Reading M
dequantises it, which only a start from the weights, DoRA and inspection ask for. Rounding a sum back would lose most of a
small change: merging refuses, with both movements of the output.

A layer is known by the package that its class or its weight comes from, so neither package is imported for other models.
"""

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.site import Linear


def comes_from(value: Any, package: str) -> bool:
    """Tell whether the class of a value, or one that it inherits from, is defined in a package."""
    return _is_of(type(value), package)


@cache
def _is_of(kind: type, package: str) -> bool:
    return any(known.__module__.partition(".")[0] == package for known in kind.__mro__)


class TorchAO(Linear):
    """nn.Linear whose weight is one of torchao's tensors: int8, or 4 bits in groups."""

    def holds(self, layer: Any) -> bool:
        weight = layer._parameters.get("weight") if isinstance(layer, nn.Linear) else None
        return weight is not None and type(layer).forward is nn.Linear.forward and comes_from(weight, "torchao")

    def quantised(self, layer: Any) -> str:
        return f"{type(layer.weight).__name__} of torchao"

    def read(self, layer: Any) -> Tensor:
        return layer.weight.detach().dequantize()

    def rounded(self, layer: Any, M: Tensor) -> Tensor:
        weight = layer.weight.detach()
        # One of the same class with this one's blocks: the numbers of levels are those of its least and greatest value.
        names, _ = weight.__tensor_flatten__()
        levels = getattr(weight, next(name for name in names if name in ("qdata", "int_data")))
        groups = levels.numel() // getattr(weight, "scale").numel()  # noqa: B009 (a tensor's own field)
        return to_levels(M, groups, 7 if str(getattr(weight, "target_dtype", "")) == "torch.int4" else 127)


class BitsAndBytes(Linear):
    """bitsandbytes.nn.Linear8bitLt and Linear4bit (nf4 and fp4), once they hold quantised values."""

    def holds(self, layer: Any) -> bool:
        if not (isinstance(layer, nn.Linear) and comes_from(layer, "bitsandbytes")):
            return False
        weight = layer._parameters.get("weight")
        return weight is not None and not weight.is_floating_point() and comes_from(weight, "bitsandbytes")

    def quantised(self, layer: Any) -> str:
        state = layer.weight.__dict__.get("quant_state")
        return f"{state.quant_type if state else 'int8'} of bitsandbytes"

    def read(self, layer: Any) -> Tensor:
        weight = layer.weight
        if (state := weight.__dict__.get("quant_state")) is not None:
            functional: Any = import_module("bitsandbytes.functional")

            return functional.dequantize_4bit(weight.data, state)
        # The first forward moves the rows' largest values from the weight to the layer.
        most = weight.SCB if weight.SCB is not None else layer.state.SCB
        return weight.data.float() * (most.float().unsqueeze(1) / 127)

    def rounded(self, layer: Any, M: Tensor) -> Tensor:
        state = layer.weight.__dict__.get("quant_state")
        if state is None:
            return to_levels(M, M.shape[1], 127)
        functional: Any = import_module("bitsandbytes.functional")

        return functional.dequantize_4bit(*functional.quantize_4bit(M.contiguous(), blocksize=state.blocksize,
                                                                    quant_type=state.quant_type))  # fmt: skip


def to_levels(M: Tensor, group: int, most: int) -> Tensor:
    """Return M rounded to whole multiples of a step for each group of a row, where the largest value is `most` steps.

    >>> to_levels(torch.tensor([[1.0, 0.4], [2.0, 0.2]]), 2, 2).tolist()
    [[1.0, 0.5], [2.0, 0.0]]
    """
    groups = M.reshape(-1, group)
    step = groups.abs().amax(1, keepdim=True).clamp_min(torch.finfo(M.dtype).tiny) / most
    return ((groups / step).round() * step).view(M.shape)


QUANTISED = {"torchao": TorchAO(), "bitsandbytes": BitsAndBytes()}
