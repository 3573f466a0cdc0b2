"""Linear layers whose matrix is kept in int8 or 4 bits, by torchao or bitsandbytes: the base stays
as it is, and frozen.

The forward is the quantised layer's own output plus the factored change, so it costs what it costs
elsewhere. Reading M dequantises it, which only a start from the weights, DoRA, merging and
inspection ask for. A sum is stored by the package's own code (`coarsened`).

A layer is known by the package that its class or its weight comes from, so neither package is
imported for other models.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from lorakit.errors import ModelError
from lorakit.sites.base import DenseSite
from lorakit.text import plural


def is_from_package(value: Any, package: str) -> bool:
    """Tell whether the class of a value, or one that it inherits from, is defined in a package."""
    return _is_of(type(value), package)


@cache
def _is_of(kind: type, package: str) -> bool:
    return any(known.__module__.partition(".")[0] == package for known in kind.__mro__)


class TorchAOSite(DenseSite):
    """nn.Linear whose weight is one of torchao's tensors: int8, or 4 bits in groups."""

    kind = "linear"
    is_quantised = True

    def supports(self, layer: Any) -> bool:
        weight = layer._parameters.get("weight") if isinstance(layer, nn.Linear) else None
        return (
            weight is not None
            and type(layer).forward is nn.Linear.forward
            and is_from_package(weight, "torchao")
        )

    def quantised_form(self, layer: Any) -> str:
        return f"{type(layer.weight).__name__} of torchao"

    def read(self, layer: Any) -> Tensor:
        return dequantise_weight(layer.weight)

    def to_weight(self, layer: Any, M: Tensor) -> Tensor:
        return M

    def requantise(self, layer: Any, M: Tensor) -> nn.Parameter | None:
        weight: Any = layer.weight.detach()
        kind, M, block = type(weight), M.float(), list(getattr(weight, "block_size", ()))
        types: Any = import_module("torchao.quantization.quant_primitives").MappingType
        symmetric = getattr(weight, "zero_point", None) is None or not weight.zero_point.any()
        how = {"mapping_type": types.SYMMETRIC if symmetric else types.ASYMMETRIC}
        if kind.__name__ == "Int8Tensor":
            sizes: Any = import_module("torchao.quantization.granularity")
            size = sizes.PerTensor() if block == list(M.shape) else sizes.PerGroup(block[-1])
            new = kind.from_hp(M, size, **how, reduce_range=weight.reduce_range)
        elif kind.__name__ == "IntxUnpackedToInt8Tensor":
            new = kind.from_hp(M, tuple(block), weight.target_dtype, **how)
        else:
            return None
        # All else (dtype of what it gives, activations) is as it was.
        names, form = weight.__tensor_flatten__()
        held = {name: getattr(weight, name) for name in names}
        held |= {
            n: getattr(new, n).to(held[n].dtype)
            for n in held
            if n in ("qdata", "scale", "zero_point")
        }
        return nn.Parameter(kind.__tensor_unflatten__(held, form, None, None), requires_grad=False)


class BitsAndBytesSite(DenseSite):
    """bitsandbytes.nn.Linear8bitLt and Linear4bit (nf4 and fp4), once they hold quantised values."""

    kind = "linear"
    is_quantised = True

    def supports(self, layer: Any) -> bool:
        if not (isinstance(layer, nn.Linear) and is_from_package(layer, "bitsandbytes")):
            return False
        weight = layer._parameters.get("weight")
        return (
            weight is not None
            and not weight.is_floating_point()
            and is_from_package(weight, "bitsandbytes")
        )

    def quantised_form(self, layer: Any) -> str:
        state = layer.weight.__dict__.get("quant_state")
        return f"{state.quant_type if state else 'int8'} of bitsandbytes"

    def read(self, layer: Any) -> Tensor:
        # The first forward of int8 moves the rows' largest values from the weight to the layer.
        return dequantise_weight(
            layer.weight, layer.state.SCB if "state" in layer.__dict__ else None
        )

    def to_weight(self, layer: Any, M: Tensor) -> Tensor:
        return M

    def requantise(self, layer: Any, M: Tensor) -> nn.Parameter | None:
        old, kind = layer.weight, type(layer.weight)
        if (state := old.__dict__.get("quant_state")) is None:
            if old.SCB is None:  # back to the weight, which so keeps all that `unmerge` needs
                old.CB, old.SCB = old.data, layer.state.SCB
            # Moving it is what rounds it, and only where it comes from a CPU.
            return kind(
                M.float().cpu().contiguous(), requires_grad=False, has_fp16_weights=False
            ).to(old.device)
        new = kind(
            M.float().contiguous(),
            requires_grad=False,
            blocksize=state.blocksize,
            compress_statistics=state.nested,
            quant_type=state.quant_type,
            quant_storage=old.quant_storage,
        ).to(old.device)
        new.quant_state.dtype = state.dtype
        return new


def dequantise_weight(weight: Any, most: Any = None) -> Tensor:
    """Return the matrix that a weight of either package stands for.

    Args:
        weight: torchao's, or bitsandbytes'.
        most: (out,), the rows' largest values, where a weight in int8 of bitsandbytes has handed
            them on.
    """
    if is_from_package(weight, "torchao"):
        return weight.detach().dequantize()
    if (state := weight.__dict__.get("quant_state")) is not None:
        return import_module("bitsandbytes.functional").dequantize_4bit(weight.data, state)
    return weight.data.float() * (
        (most if weight.SCB is None else weight.SCB).float().unsqueeze(1) / 127
    )


def prevent_packing(model: nn.Module) -> list[Any]:
    """Keep bitsandbytes from packing the model's 4-bit layers anew for this CPU; return the layers
    that it would have.

    A forward in eval mode does so, in place, where the CPU multiplies in bfloat16: the scales are
    rounded to bfloat16, and no gradient passes the layer from then on.

    Raises:
        ModelError: that has happened.
    """
    found = model.named_modules() if "bitsandbytes" in sys.modules else ()
    layers = {
        name: layer for name, layer in found if "support_avx512bf16_for_cpu" in layer.__dict__
    }
    states = {
        name: layer._parameters["weight"].__dict__.get("quant_state")
        for name, layer in layers.items()
    }
    if packed := [
        name for name, state in states.items() if getattr(state, "packing_format_for_cpu", False)
    ]:
        raise ModelError(
            f"bitsandbytes has packed {plural(len(packed), '4-bit layer')} for inference on this CPU, in a forward in eval mode: "
            "no gradient passes them, and their scales were rounded.",
            packed,
            "Load the base again, and attach before it runs. Nothing was attached.",
        )
    held: list[Any] = [layer for layer in layers.values() if layer.support_avx512bf16_for_cpu]
    for layer in held:
        layer.support_avx512bf16_for_cpu = False
    return held


def allow_packing(layers: list[Any]) -> None:
    """Let bitsandbytes pack these layers again."""
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True


@contextmanager
def without_packing(model: nn.Module) -> Iterator[None]:
    """Keep 4-bit layers from being packed while a block lasts."""
    held = prevent_packing(model)
    try:
        yield
    finally:
        allow_packing(held)


QUANTISED = {"torchao": TorchAOSite(), "bitsandbytes": BitsAndBytesSite()}
