"""Sites of weights that a parent module reads from its child instead of calling the child.

Some parents do so always, some only on one path (a fused kernel). A hook on the child would have no
effect there. So the changed weight is swapped into the child while the parent runs, which is right
whether the child is called or its weight is read.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import cast, final

from torch import Tensor, nn

from lorakit.sites.base import Site
from lorakit.sites.weight_swap import SwappedWeightSite
from lorakit.spec import Settings

# The children that a parent reads, by a pattern of the parent's class name in transformers.
# `lorakit.check` detects others.
READ_CHILDREN = {
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


@final
class ChildWeightSite(SwappedWeightSite[nn.Module]):
    """The matrix of a child of the layer.

    Args:
        child_name: name of the child in the layer.
        inner: site of the child.
    """

    def __init__(self, child_name: str, inner: Site):
        super().__init__(inner.kind, f"{child_name}.{inner.weight_name()}")
        self.child_name, self.inner = child_name, inner

    def child(self, layer: nn.Module) -> nn.Module:
        """Return the child of the layer."""
        return cast(nn.Module, layer._modules[self.child_name])

    def supports(self, layer: nn.Module) -> bool:
        child = layer._modules.get(self.child_name)
        return child is not None and self.inner.supports(child)

    def read(self, layer: nn.Module) -> Tensor:
        return self.inner.read(self.child(layer))

    def to_weight(self, layer: nn.Module, M: Tensor) -> Tensor:
        return self.inner.to_weight(self.child(layer), M)

    def fan_in(self, layer: nn.Module) -> int:
        return self.inner.fan_in(self.child(layer))

    def kernel(self, layer: nn.Module) -> tuple[int, ...]:
        return self.inner.kernel(self.child(layer))

    def rank_faults(self, layer: nn.Module, rank: int) -> list[str]:
        return self.inner.rank_faults(self.child(layer), rank)

    def matrix_faults(self, layer: nn.Module, settings: Settings) -> list[str]:
        return self.inner.faults(self.child(layer), settings)


def find_read_children(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children whose weights this layer reads itself, with their names."""
    for name in _read_children_of(type(layer).__name__):
        child = layer._modules.get(name)
        if child is not None:
            yield name, child


@cache
def _read_children_of(class_name: str) -> tuple[str, ...]:
    """Return the names of the children that a layer of this class reads, if it has them."""
    for pattern, children in READ_CHILDREN.items():
        if re.fullmatch(pattern, class_name):
            return children
    return ()
