"""Weights of a child that its parent reads itself instead of calling the child, always or on some
path (a fused kernel).

A hook on the child would see nothing there. So the parent borrows: while it runs, the child holds
the changed weight, which is right whether the child is called or its weight is read.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor, nn

from lorakit.sites.base import Site
from lorakit.sites.weight_swap import SwappedWeightSite
from lorakit.spec import Settings

# Class name of the parent in transformers -> its children that it reads. `lorakit.check` finds
# others.
READERS = {
    r"\w*Mamba2?(Mixer|Layer)|BambaMixer|FalconH1Mixer": (
        "conv1d",
        "x_proj",
        "dt_proj",
        "out_proj",
    ),
    r"\w*(GatedDeltaNet|DeltaAttention|ShortConv)": ("conv1d", "conv"),
    r"RecurrentGemmaRecurrentBlock": ("conv_1d",),
    r"WavLMAttention": ("q_proj", "k_proj", "v_proj", "out_proj"),
    r"\w*MHAttentionMap": ("k_proj", "k_linear"),
}


class ChildWeightSite(SwappedWeightSite):
    """The matrix of the layer's child, which a site of its own holds."""

    def __init__(self, child: str, inner: Site):
        super().__init__(inner.kind, f"{child}.{inner.weight_name()}")
        self.child_name, self.inner = child, inner

    def supports(self, layer: nn.Module) -> bool:
        child = layer._modules.get(self.child_name)
        return child is not None and self.inner.supports(child)

    def read(self, layer: Any) -> Tensor:
        return self.inner.read(layer._modules[self.child_name])

    def to_weight(self, layer: Any, M: Tensor) -> Tensor:
        return self.inner.to_weight(layer._modules[self.child_name], M)

    def fan_in(self, layer: Any) -> int:
        return self.inner.fan_in(layer._modules[self.child_name])

    def kernel(self, layer: Any) -> tuple[int, ...]:
        return self.inner.kernel(layer._modules[self.child_name])

    def matrix_faults(self, layer: Any, settings: Settings) -> list[str]:
        return self.inner.faults(layer._modules[self.child_name], settings)


def find_read_children(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children whose weights this layer reads itself, by name."""
    yield from (
        (name, child)
        for name in _read_by(type(layer).__name__)
        if (child := layer._modules.get(name)) is not None
    )


@cache
def _read_by(kind: str) -> tuple[str, ...]:
    return next((children for name, children in READERS.items() if re.fullmatch(name, kind)), ())
