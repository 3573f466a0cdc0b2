"""The kinds of layers in the table of laws, with their formulas."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorakit.sites.base import DenseSite
from lorakit.sites.fused_parts import Layout, OutputSliceSite
from lorakit.sites.weight_swap import SwappedWeightSite

from .formulas import (
    Patches,
    conv1d,
    embedding,
    embedding_factors,
    linear,
    linear_factors,
)


@dataclass(frozen=True)
class Kind:
    """A layer with its formulas.

    Args:
        make: builds the layer.
        dense: its output from weight, bias and input.
        factors: (B A) x from A, B and x.
        transposed: whether its weight is the matrix transposed.
        x: (channels, ...) of an input of a convolution, or (inputs,).
        width: the last axis of its output.
        outputs: rows of the matrix that are adapted, in this order; all if empty.
    """

    make: Callable[[], nn.Module]
    dense: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    factors: Callable[[Tensor, Tensor, Tensor], Tensor]
    transposed: bool = False
    x: tuple[int, ...] = (12,)
    width: int = 10
    outputs: tuple[int, ...] = ()

    @property
    def is_convolution(self) -> bool:
        return len(self.x) > 1


def convolution(
    make: Callable[[], nn.Module], formula: Patches, x: tuple[int, ...], width: int
) -> Kind:
    return Kind(make, formula.dense, formula.factors, formula.transposed, x, width)


class Fused(nn.Linear):
    """Three projections in one matrix, one after the other."""


class Interleaved(nn.Linear):
    """Two heads of two projections each."""


class Reading(nn.Module):
    """A module that reads its weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(10, 12))
        self.bias = nn.Parameter(torch.empty(10))

    def forward(self, input: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", input, self.weight) + self.bias


class FusedSite(DenseSite[nn.Linear]):
    """A layer of one class of this file, whose matrix holds several projections."""

    def __init__(self, kind: str, layer_class: type[nn.Linear]):
        self.kind = kind
        self.layer_class = layer_class

    def supports(self, layer: nn.Module) -> bool:
        return isinstance(layer, self.layer_class)

    def read(self, layer: nn.Linear) -> Tensor:
        return layer.weight.detach()

    def to_weight(self, layer: nn.Linear, M: Tensor) -> Tensor:
        return M


class ReadingSite(SwappedWeightSite[Reading]):
    """The weight of Reading."""

    def supports(self, layer: nn.Module) -> bool:
        return isinstance(layer, Reading)


# Registered as a user registers a site (see conftest), so that the place of each is the layer.
ADDED = [
    OutputSliceSite(FusedSite("contiguous", Fused), Layout({"q": 5, "k": 4, "v": 3}), "k"),
    OutputSliceSite(FusedSite("interleaved", Interleaved), Layout({"k": 2, "v": 3}, groups=2), "v"),
    ReadingSite("reading", "weight"),
]

KINDS = {
    "part-contiguous": Kind(
        lambda: Fused(12, 12),
        linear,
        linear_factors,
        width=12,
        outputs=(5, 6, 7, 8),
    ),
    "part-interleaved": Kind(
        lambda: Interleaved(12, 10),
        linear,
        linear_factors,
        outputs=(2, 3, 4, 7, 8, 9),
    ),
    "swapped": Kind(Reading, linear, linear_factors),
    "linear": Kind(lambda: nn.Linear(12, 10), linear, linear_factors),
    "linear-square": Kind(
        lambda: nn.Linear(8, 8, bias=False),
        linear,
        linear_factors,
        x=(8,),
        width=8,
    ),
    "conv1d": Kind(lambda: Conv1D(10, 12), conv1d, linear_factors, transposed=True),
    "embedding": Kind(
        lambda: nn.Embedding(20, 10),
        embedding,
        embedding_factors,
        transposed=True,
    ),
    "embedding-padded": Kind(
        lambda: nn.Embedding(20, 10, padding_idx=3),
        embedding,
        embedding_factors,
        transposed=True,
    ),
    "convolution1d": convolution(
        lambda: nn.Conv1d(4, 6, 3),
        Patches((3,), (1,), (1,), ((0, 0),)),
        (4, 10),
        8,
    ),
    "convolution2d-circular": convolution(
        lambda: nn.Conv2d(
            6,
            8,
            (3, 2),
            stride=2,
            padding=1,
            dilation=(1, 2),
            groups=2,
            padding_mode="circular",
        ).to(memory_format=torch.channels_last),
        Patches((3, 2), (2, 2), (1, 2), ((1, 1), (1, 1)), groups=2, mode="circular"),
        (6, 3, 15),
        8,
    ),
    "convolution2d-depthwise": convolution(
        lambda: nn.Conv2d(4, 4, (3, 5), padding="same", groups=4, bias=False),
        Patches((3, 5), (1, 1), (1, 1), ((1, 1), (2, 2)), groups=4),
        (4, 3, 8),
        8,
    ),
    "convolution3d": convolution(
        lambda: nn.Conv3d(2, 4, (1, 2, 3), padding=(0, 1, 0), padding_mode="replicate"),
        Patches((1, 2, 3), (1, 1, 1), (1, 1, 1), ((0, 0), (1, 1), (0, 0)), mode="replicate"),
        (2, 2, 2, 10),
        8,
    ),
    "transposed2d": convolution(
        lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        Patches(
            (3, 3),
            (2, 2),
            (1, 1),
            ((1, 1), (1, 1)),
            groups=2,
            transposed=True,
            extra=(1, 1),
        ),
        (8, 2, 4),
        8,
    ),
}
