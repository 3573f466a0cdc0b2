"""Weights of a child that its parent reads itself instead of calling the child, always or on some path (a fused kernel).

A hook on the child would see nothing there. So the parent borrows: while it runs, the child holds the changed weight, which is
right whether the child is called or its weight is read.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor, nn

from lorakit.site import Linear
from lorakit.spec import Settings

# Class name of the parent in transformers -> its children that it reads. `lorakit.check` finds others.
READERS = {
    r"\w*Mamba2?(Mixer|Layer)|BambaMixer|FalconH1Mixer": ("conv1d", "x_proj", "dt_proj", "out_proj"),
    r"\w*(GatedDeltaNet|DeltaAttention|ShortConv)": ("conv1d", "conv"),
    r"RecurrentGemmaRecurrentBlock": ("conv_1d",),
    r"WavLMAttention": ("q_proj", "k_proj", "v_proj", "out_proj"),
    r"\w*MHAttentionMap": ("k_proj", "k_linear"),
}


class Borrowed(Linear):
    """The matrix of the layer's child, which a site of its own holds."""

    lends = True

    def __init__(self, child: str, inner: Linear):
        self.child, self.inner, self.kind = child, inner, inner.kind

    def path(self) -> str:
        return f"{self.child}.{self.inner.path()}"

    def read(self, layer: Any) -> Tensor:
        return self.inner.read(layer._modules[self.child])

    def stored(self, layer: Any, M: Tensor) -> Tensor:
        return self.inner.stored(layer._modules[self.child], M)

    def fan_in(self, layer: Any) -> int:
        return self.inner.fan_in(layer._modules[self.child])

    def kernel(self, layer: Any) -> tuple[int, ...]:
        return self.inner.kernel(layer._modules[self.child])

    def lend(self, layer: nn.Module, changes: list[tuple[float, Any, Any]]) -> None:
        """Let the child hold its weight with changes added; a tensor of its instance hides the parameter of its name."""
        child: Any = layer._modules[self.child]
        child.__dict__[self.inner.path()] = self.stored(layer, self.changed(layer, changes)).to(child.weight.dtype)

    def take_back(self, layer: nn.Module) -> None:
        """Let the child hold its own weight again."""
        child: Any = layer._modules[self.child]
        child.__dict__.pop(self.inner.path(), None)

    def faults(self, layer: Any, settings: Settings) -> list[str]:
        faults = self.inner.faults(layer._modules[self.child], settings)
        if settings.dropout:
            faults.append(f"dropout {settings.dropout:g}: {type(layer).__name__} reads this weight itself, so the input of A "
                          "cannot be seen; set it to 0 for this name with overrides")  # fmt: skip
        return faults


def children_read(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children whose weights this layer reads itself, by name."""
    yield from ((name, child) for name in _read_by(type(layer).__name__) if (child := layer._modules.get(name)) is not None)


@cache
def _read_by(kind: str) -> tuple[str, ...]:
    return next((children for name, children in READERS.items() if re.fullmatch(name, kind)), ())
