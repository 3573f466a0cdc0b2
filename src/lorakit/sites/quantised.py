"""Sites of linear layers in int8 or 4 bits, by torchao or bitsandbytes.

The base stays quantised and frozen. The forward is the quantised layer's own output plus the
factored change, so adapting costs what it costs elsewhere. Only a start from the weights, DoRA,
merging and inspection dequantise M. `requantise` uses the package's own code.

A layer is recognised by the package that defines the class of its weight, so neither package is
imported for other models.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, final

from torch import Tensor, nn

from lorakit.errors import ModelError
from lorakit.sites.base import DenseSite, Site, keeps_forward
from lorakit.sites.slot import base_modules
from lorakit.text import plural


def is_from_package(value: object, package: str) -> bool:
    """Return True if a package defines the class of the value, or one that it inherits from."""
    return _is_class_from(type(value), package)


@cache
def _is_class_from(kind: type, package: str) -> bool:
    packages = [known.__module__.partition(".")[0] for known in kind.__mro__]
    return package in packages


class QuantisedLinearSite(DenseSite[nn.Linear]):
    """A subclass of nn.Linear, or an nn.Linear with a tensor subclass as weight, in few bits."""

    kind = "linear"
    is_quantised = True

    def to_weight(self, layer: nn.Linear, M: Tensor) -> Tensor:
        return M


@final
class TorchAOSite(QuantisedLinearSite):
    """nn.Linear with one of torchao's tensors as weight: int8, or 4 bits in groups."""

    def supports(self, layer: nn.Module) -> bool:
        if not keeps_forward(layer, nn.Linear):
            return False
        weight = layer._parameters.get("weight")
        return weight is not None and is_from_package(weight, "torchao")

    def quantised_form(self, layer: nn.Linear) -> str:
        return f"{type(layer.weight).__name__} of torchao"

    def read(self, layer: nn.Linear) -> Tensor:
        return dequantise_weight(layer.weight)

    def requantise(self, layer: nn.Linear, M: Tensor) -> nn.Parameter | None:
        weight: Any = layer.weight.detach()  # a tensor subclass of torchao, which has no stubs
        quantised = _quantise_like(weight, M.float())
        if quantised is None:
            return None
        # All other attributes (output dtype, quantisation of activations) stay as they are.
        names, context = weight.__tensor_flatten__()
        tensors = {name: getattr(weight, name) for name in names}
        for name in ("qdata", "scale", "zero_point"):
            if name in tensors:
                dtype = tensors[name].dtype
                tensors[name] = getattr(quantised, name).to(dtype)
        new = type(weight).__tensor_unflatten__(tensors, context, None, None)
        return nn.Parameter(new, requires_grad=False)


def _quantise_like(weight: Any, M: Tensor) -> Tensor | None:  # noqa: ANN401  torchao has no stubs
    """Return M in torchao's form of this weight; None if that form cannot be made from a matrix."""
    kind = type(weight)
    block = list(getattr(weight, "block_size", ()))
    zero_point = getattr(weight, "zero_point", None)
    types = import_module("torchao.quantization.quant_primitives").MappingType
    is_symmetric = zero_point is None or not zero_point.any()
    mapping = types.SYMMETRIC if is_symmetric else types.ASYMMETRIC
    if kind.__name__ == "Int8Tensor":
        sizes = import_module("torchao.quantization.granularity")
        is_one_block = block == list(M.shape)
        size = sizes.PerTensor() if is_one_block else sizes.PerGroup(block[-1])
        return kind.from_hp(M, size, mapping_type=mapping, reduce_range=weight.reduce_range)
    if kind.__name__ == "IntxUnpackedToInt8Tensor":
        return kind.from_hp(M, tuple(block), weight.target_dtype, mapping_type=mapping)
    return None


@final
class BitsAndBytesSite(QuantisedLinearSite):
    """bitsandbytes.nn.Linear8bitLt and Linear4bit (nf4 and fp4) that hold quantised values."""

    def supports(self, layer: nn.Module) -> bool:
        if not isinstance(layer, nn.Linear) or not is_from_package(layer, "bitsandbytes"):
            return False
        weight = layer._parameters.get("weight")
        if weight is None or weight.is_floating_point():
            return False
        return is_from_package(weight, "bitsandbytes")

    def quantised_form(self, layer: nn.Linear) -> str:
        state = layer.weight.__dict__.get("quant_state")
        return f"{state.quant_type if state else 'int8'} of bitsandbytes"

    def read(self, layer: nn.Linear) -> Tensor:
        # The first forward of int8 moves the rows' absolute maxima from the weight to the layer.
        state = layer.__dict__.get("state")
        row_maxima = state.SCB if state is not None else None
        return dequantise_weight(layer.weight, row_maxima)

    def requantise(self, layer: nn.Linear, M: Tensor) -> nn.Parameter | None:
        state = layer.weight.__dict__.get("quant_state")
        if state is None:
            return _requantise_int8(layer, M)
        weight: Any = layer.weight
        new = type(weight)(
            M.float().contiguous(),
            requires_grad=False,
            blocksize=state.blocksize,
            compress_statistics=state.nested,
            quant_type=state.quant_type,
            quant_storage=weight.quant_storage,
        ).to(weight.device)
        new.quant_state.dtype = state.dtype
        return new


def _requantise_int8(layer: nn.Linear, M: Tensor) -> nn.Parameter:
    """Return M in bitsandbytes' int8."""
    weight: Any = layer.weight
    if weight.SCB is None:
        # Back to the weight, which then holds all that `unmerge` needs.
        state: Any = layer.__dict__["state"]
        weight.CB, weight.SCB = weight.data, state.SCB
    # Moving it to its device quantises it, but only from a CPU.
    cpu_matrix = M.float().cpu().contiguous()
    new = type(weight)(cpu_matrix, requires_grad=False, has_fp16_weights=False)
    return new.to(weight.device)


def dequantise_weight(weight: Tensor, row_maxima: Tensor | None = None) -> Tensor:
    """Return the matrix that a quantised weight represents.

    Args:
        weight: a weight of torchao or bitsandbytes.
        row_maxima: (out,), the absolute maxima of the rows, if bitsandbytes has moved them from an
            int8 weight to its layer.
    """
    quantised: Any = weight
    if is_from_package(quantised, "torchao"):
        return quantised.detach().dequantize()
    state = quantised.__dict__.get("quant_state")
    if state is not None:
        dequantize_4bit = import_module("bitsandbytes.functional").dequantize_4bit
        return dequantize_4bit(quantised.data, state)
    maxima: Any = row_maxima if quantised.SCB is None else quantised.SCB
    steps = maxima.float().unsqueeze(1) / 127
    return quantised.data.float() * steps


def prevent_packing(model: nn.Module) -> list[nn.Module]:
    """Keep bitsandbytes from packing 4-bit layers for this CPU; return the layers it concerns.

    On a CPU that multiplies in bfloat16, a forward in eval mode packs the weight in place: its
    scales are rounded to bfloat16, and no gradient passes the layer from then on.

    Raises:
        ModelError: layers have been packed already.
    """
    if "bitsandbytes" not in sys.modules:
        return []
    layers: list[nn.Module] = []
    packed: list[str] = []
    for name, layer in base_modules(model):
        if "support_avx512bf16_for_cpu" not in layer.__dict__:
            continue
        if _is_packed(layer):
            packed.append(name)
        if layer.support_avx512bf16_for_cpu:
            layers.append(layer)
    if packed:
        raise ModelError(
            f"bitsandbytes has packed {plural(len(packed), '4-bit layer')} for inference on this "
            "CPU, in a forward in eval mode: no gradient passes them, and their scales were "
            "rounded.",
            packed,
            "Load the base again, and attach before it runs. Nothing was attached.",
        )
    _set_packing(layers, allowed=False)
    return layers


def _is_packed(layer: nn.Module) -> bool:
    state = layer._parameters["weight"].__dict__.get("quant_state")
    return bool(getattr(state, "packing_format_for_cpu", False))


def _set_packing(layers: Iterable[nn.Module], *, allowed: bool) -> None:
    for layer in layers:
        layer.__dict__["support_avx512bf16_for_cpu"] = allowed


def allow_packing(layers: Iterable[nn.Module]) -> None:
    """Let bitsandbytes pack these layers again."""
    _set_packing(layers, allowed=True)


@contextmanager
def without_packing(model: nn.Module) -> Iterator[None]:
    """Keep 4-bit layers from being packed inside a block."""
    layers = prevent_packing(model)
    try:
        yield
    finally:
        allow_packing(layers)


QUANTISED: dict[str, Site] = {
    "torchao": TorchAOSite(),
    "bitsandbytes": BitsAndBytesSite(),
}
