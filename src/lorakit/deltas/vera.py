"""VeRA: one random pair of factors that all layers share and none trains, and two vectors of each
layer that do.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.deltas.base import Delta, draw_uniform
from lorakit.errors import SpecError
from lorakit.spec import SCALES, Settings, Spec


class SharedPair(nn.Module):
    """The factors that all layers share: A (rank, the most inputs of any layer) and B (the most
    outputs, rank).
    """

    def __init__(self, A: Tensor, B: Tensor):
        super().__init__()
        self.register_buffer("A", A)
        self.register_buffer("B", B)
        self.A: Tensor
        self.B: Tensor


class VeRA(Delta):
    """W' = W + diag(b) B diag(d) A, with A and B cut out of the shared pair; alpha and the scale
    rule are in its B.

    Args:
        b: (out,); it starts at zero.
        d: (rank,); it starts at 0.1.
        pair: shared by all layers of an adapter.
        inputs: of the matrix; 0 where a file did not tell.
        **more: as Delta.

    Source: Kopiczko et al., VeRA, arXiv 2310.11454, equation 2 and section 3.2; alpha = rank gives
        its scale, 1.

    >>> pair = SharedPair(torch.ones(1, 3), torch.ones(4, 1))
    >>> VeRA(torch.tensor([1.0, 2.0]), torch.tensor([3.0]), pair, inputs=2, alpha=1.0).matrix().tolist()
    [[3.0, 3.0], [6.0, 6.0]]
    """

    name, zero_parameter = "vera", "b"
    kinds, inits = ("linear", "conv1d"), ("kaiming",)

    def __init__(self, b: Tensor, d: Tensor, pair: SharedPair, inputs: int = 0, **more: Any):
        super().__init__(len(d), **more)
        self.b, self.d, self.pair, self.inputs = nn.Parameter(b), nn.Parameter(d), pair, inputs

    @classmethod
    def faults(cls, site: Any, settings: Settings, spec: Spec) -> list[str]:
        own = [
            k for k in ("rank", "alpha", "scale_rule") if getattr(settings, k) != getattr(spec, k)
        ]
        told = (
            [
                f"delta 'vera': all layers share one pair of factors, so {', '.join(own)} cannot be overridden"
            ]
            if own
            else []
        )
        return [*super().faults(site, settings, spec), *told]

    @classmethod
    def make_shared(
        cls, shapes: Mapping[str, tuple[int, int]], spec: Spec, generator: torch.Generator
    ) -> dict[str, Any]:
        """Return the pair: it depends on the seed and the largest sizes alone."""
        if not shapes:
            return {}
        out, inputs = (max(shape[at] for shape in shapes.values()) for at in (0, 1))
        like, gain = torch.empty((), dtype=getattr(torch, spec.dtype)), 6**0.5
        A = draw_uniform(like, generator, spec.rank, inputs) * gain
        return {
            "pair": SharedPair(
                A,
                draw_uniform(like, generator, out, spec.rank)
                * (gain * SCALES[spec.scale_rule](spec.alpha, spec.rank)),
            )
        }

    @classmethod
    def start(
        cls, A: Tensor, M: Tensor, generator: torch.Generator, *, pair: SharedPair, **more: Any
    ) -> "VeRA":
        """Return one that changes nothing yet: b zero, d 0.1."""
        pair.to(A.device)
        return cls(A.new_zeros(len(M)), A.new_full((len(A),), 0.1), pair, M.shape[1], **more)

    @property
    def rank(self) -> int:
        return len(self.d)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.b), self.inputs or self.pair.A.shape[1]

    def shape_faults(self, shape: tuple[int, int]) -> Iterator[str]:
        fits = shape[1] == self.inputs if self.inputs else shape[1] <= self.pair.A.shape[1]
        if len(self.b) != shape[0] or not fits:
            yield f"changes a matrix of {self.shape}, the layer's is {tuple(shape)}"

    def complete_for_layer(
        self, kind: str, kernel: tuple[int, ...], shape: tuple[int, int]
    ) -> None:
        super().complete_for_layer(kind, kernel, shape)
        self.inputs = shape[1]

    def matrix(self, M: Tensor | None = None) -> Tensor:
        inputs = self.inputs if M is None else M.shape[1]
        if not inputs:
            raise SpecError(
                "How many inputs its matrix has, a VeRA file of PEFT's does not say: give matrix(M) the base's."
            )
        wide = torch.promote_types(self.b.dtype, torch.float32)
        A, B = (
            self.pair.A[:, :inputs].to(self.d.device, wide),
            self.pair.B[: len(self.b)].to(self.b.device, wide),
        )
        return (self.b.to(wide).unsqueeze(1) * B) @ (self.d.to(wide).unsqueeze(1) * A)

    def forward(self, site: Any, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if self.dropout:
            x = nn.functional.dropout(x, self.dropout, self.training)
        # The pair may be on another device than this layer, where a model is spread over several.
        A, B = self.pair.A[:, : self.shape[1]].to(y), self.pair.B[: len(self.b)].to(self.b.device)
        h = site.project(layer, A, x) * self.d.to(y.dtype)
        return site.expand(layer, (self.b.unsqueeze(1) * B).to(y.dtype), h, y)
