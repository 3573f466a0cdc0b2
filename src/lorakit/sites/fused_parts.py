"""Parts of a fused matrix, which holds several projections: q, k and v, or gate and up.

A part is a place of its own, named `<layer>.<part>`. Its input is the layer's input, its output is
a slice of the layer's outputs. The model family (`families.py`) or the user (`Spec.parts`) says
which outputs belong to which part.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.sites.base import Site


@dataclass(frozen=True)
class Layout:
    """The order of the parts' outputs in a fused matrix.

    The outputs are `groups` blocks of one size, and each block holds `sizes` outputs of each part,
    in order. One group is the contiguous form (GPT-2: all of q, all of k, all of v); one group for
    each head is the interleaved form (BLOOM).

    >>> Layout({"q": 4, "k": 2, "v": 2}).outputs, Layout({"q": 2, "k": 2, "v": 2}, groups=4).outputs
    (8, 24)
    """

    sizes: Mapping[str, int]
    groups: int = 1

    @property
    def group_size(self) -> int:
        """The number of outputs in one group."""
        return sum(self.sizes.values())

    @property
    def outputs(self) -> int:
        """The number of outputs of the fused matrix."""
        return self.groups * self.group_size

    def start(self, part: str) -> int:
        """Return the first output of a part in each group."""
        names = list(self.sizes)
        before = names[: names.index(part)]
        return sum(self.sizes[name] for name in before)


@final
class OutputSliceSite(Site[nn.Module]):
    """A part of the matrix of another site.

    Args:
        full_site: site of the fused matrix.
        layout: order of the outputs of all parts.
        part: name of this part.
    """

    def __init__(self, full_site: Site, layout: Layout, part: str):
        self.fused = full_site
        self.kind = full_site.kind
        self.swaps_weight = full_site.swaps_weight
        self.groups = layout.groups
        group_size = layout.group_size
        self.size = layout.sizes[part]
        self.start = layout.start(part)
        self.stop = self.start + self.size
        self.after = group_size - self.stop
        self.output_slice = (self.groups, group_size, self.start, self.size)

    @property
    def full_site(self) -> Site:
        return self.fused

    def supports(self, layer: nn.Module) -> bool:
        return self.fused.supports(layer)

    def weight_name(self) -> str:
        return self.fused.weight_name()

    def read(self, layer: nn.Module) -> Tensor:
        M = self.fused.read(layer)
        groups = M.unflatten(0, (self.groups, -1))
        part = groups[:, self.start : self.stop]
        return part.flatten(0, 1)

    def to_weight(self, layer: nn.Module, M: Tensor) -> Tensor:
        full_matrix = self.widen(M)
        return self.fused.to_weight(layer, full_matrix)

    def widen(self, change: Tensor) -> Tensor:
        groups = change.unflatten(0, (self.groups, self.size))
        padded = F.pad(groups, (0, 0, self.start, self.after))
        return padded.flatten(0, 1)

    def fan_in(self, layer: nn.Module) -> int:
        return self.fused.fan_in(layer)

    def project(self, layer: nn.Module, A: Tensor, x: Tensor) -> Tensor:
        return self.fused.project(layer, A, x)

    def expand(self, layer: nn.Module, B: Tensor, projected: Tensor, y: Tensor) -> Tensor:
        values = F.linear(projected, B)
        return self.scatter_outputs(values, 0.0)

    def broadcast_outputs(self, layer: nn.Module, vector: Tensor) -> Tensor:
        return self.scatter_outputs(vector, 1.0)

    def scatter_outputs(self, values: Tensor, fill: float) -> Tensor:
        groups = values.unflatten(-1, (self.groups, self.size))
        padded = F.pad(groups, (self.start, self.after), value=fill)
        return padded.flatten(-2)


def make_qkv_layout(outputs: int, groups: int = 1) -> Layout:
    """Return the layout of q, k and v of equal sizes."""
    group_size = outputs // groups
    size = group_size // 3
    return Layout({"q": size, "k": size, "v": size}, groups)
