"""Parts of a matrix that holds several projections at once: q, k and v in one, or gate and up.

A part is a place of its own, named `<layer>.<part>`. Its input is the layer's, its output some of
the layer's outputs. Which rows are whose is told by the model family (`families.py`), or given
(`Spec.parts`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lorakit.sites.base import Site


@dataclass(frozen=True)
class Layout:
    """The rows of a matrix: `groups` blocks of one size, one after the other; in each, `sizes` rows
    of each part, in order.

    One group is the contiguous form (GPT-2: all of q, all of k, all of v); a group a head is the
    interleaved one (BLOOM).

    >>> Layout({"q": 4, "k": 2, "v": 2}).outputs, Layout({"q": 2, "k": 2, "v": 2}, groups=4).outputs
    (8, 24)
    """

    sizes: Mapping[str, int]
    groups: int = 1

    @property
    def outputs(self) -> int:
        return self.groups * sum(self.sizes.values())


class OutputSliceSite(Site):
    """Some rows of the matrix of another site."""

    def __init__(self, whole: Site, layout: Layout, part: str):
        self.of, self.kind, self.swaps_weight, self.layout, self.part = (
            whole,
            whole.kind,
            whole.swaps_weight,
            layout,
            part,
        )
        names = list(layout.sizes)
        self.start = sum(layout.sizes[n] for n in names[: names.index(part)])
        self.size, self.block = layout.sizes[part], sum(layout.sizes.values())
        self.output_slice = (layout.groups, self.block, self.start, self.size)

    @property
    def full_site(self) -> Site:
        return self.of

    def supports(self, layer: Any) -> bool:
        return self.of.supports(layer)

    def weight_name(self) -> str:
        return self.of.weight_name()

    def read(self, layer: Any) -> Tensor:
        groups = self.of.read(layer).unflatten(0, (self.layout.groups, self.block))
        return groups[:, self.start : self.start + self.size].flatten(0, 1)

    def widen(self, change: Tensor) -> Tensor:
        ends = (0, 0, self.start, self.block - self.start - self.size)
        return F.pad(change.unflatten(0, (self.layout.groups, self.size)), ends).flatten(0, 1)

    def fan_in(self, layer: Any) -> int:
        return self.of.fan_in(layer)

    def project(self, layer: Any, A: Tensor, x: Tensor) -> Tensor:
        return self.of.project(layer, A, x)

    def to_weight(self, layer: Any, M: Tensor) -> Tensor:
        return self.of.to_weight(layer, self.widen(M))

    def apply(self, layer: Any, M: Tensor, x: Tensor) -> Tensor:
        return self.scatter_outputs(self.of.apply(layer, M, x), 0.0)

    def expand(self, layer: Any, B: Tensor, h: Tensor, y: Tensor) -> Tensor:
        return self.scatter_outputs(F.linear(h, B), 0.0)

    def broadcast_outputs(self, layer: Any, vector: Tensor) -> Tensor:
        return self.scatter_outputs(vector, 1.0)

    def scatter_outputs(self, some: Tensor, rest: float) -> Tensor:
        """Return values of this part's outputs (..., size) among all outputs (..., out), which else
        are `rest`.
        """
        ends = (self.start, self.block - self.start - self.size)
        return F.pad(some.unflatten(-1, (self.layout.groups, self.size)), ends, value=rest).flatten(
            -2
        )


def make_qkv_layout(outputs: int, groups: int = 1) -> Layout:
    """Return the layout of q, k and v of one size."""
    size = outputs // (3 * groups)
    return Layout({"q": size, "k": size, "v": size}, groups)
