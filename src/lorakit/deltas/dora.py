"""DoRA: the matrix as a direction that low rank changes, and a magnitude of each output that trains
by itself.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lorakit.deltas.base import LowRank
from lorakit.errors import SpecError
from lorakit.spec import Settings, Spec


class DoRA(LowRank):
    """W' = magnitude * V / |V| with V = W + scale B A, row by row; the norm |V| counts as a
    constant in the gradient.

    Args:
        A: (rank, in).
        B: (out, rank).
        magnitude: (out,); it starts as the norm of each row of W, so that a new one changes
            nothing.
        **more: as LowRank.

    Source: Liu et al., DoRA, arXiv 2402.09353, equations 5 and 11 (the detached norm) of section
        4.3.

    >>> W = torch.tensor([[3.0, 4.0]])
    >>> delta = DoRA.start(torch.zeros(1, 2), W, alpha=1.0)
    >>> delta.magnitude.tolist(), delta.matrix(W).tolist()
    ([5.0], [[0.0, 0.0]])
    """

    name = "dora"
    is_product = False

    def __init__(self, A: Tensor, B: Tensor, magnitude: Tensor, **more: Any):
        super().__init__(A, B, **more)
        self.magnitude = nn.Parameter(magnitude)

    @classmethod
    def faults(cls, site: Any, settings: Settings, spec: Spec) -> list[str]:
        if site.kind == "experts":
            return [
                "delta 'dora': a stack of experts is changed by low rank alone; use delta='lora'"
            ]
        # in a file they share one pair of factors, which other readers would take for something
        # else
        if site.output_slice:
            return [
                "delta 'dora': a part of a fused layer is changed by plain low rank alone; use delta='lora', or name the "
                "whole layer"
            ]
        # The rows of a transposed convolution's matrix are no outputs: each is one place of the
        # kernel.
        turned = site.kind.startswith("transposed")
        return ["delta 'dora': a transposed convolution has no row an output"] if turned else []

    @classmethod
    def start(
        cls, A: Tensor, M: Tensor, generator: torch.Generator | None = None, **more: Any
    ) -> "DoRA":
        delta = cls(A, A.new_zeros(len(M), len(A)), A.new_zeros(len(M)), **more)
        delta.magnitude.data.copy_(delta.norm(M))
        return delta

    def norm(self, M: Tensor) -> Tensor:
        """Return the norm of each row of M + scale B A: (out,), float32 or better; no gradient
        flows through it.

        Cost: M is read once and never copied to another dtype with the change added: the sum is of
            three terms,
        |M|^2 + 2 scale <M, B A> + scale^2 |B A|^2, each from the factors.
        """
        with torch.no_grad():
            wide = torch.promote_types(torch.promote_types(M.dtype, self.A.dtype), torch.float32)
            A, B, M = self.A.to(wide), self.B.to(wide), M.to(wide)
            across = (B * (M @ A.T)).sum(1)
            own = ((B @ (A @ A.T)) * B).sum(1)
            return (
                (M.square().sum(1) + 2 * self.scale * across + self.scale**2 * own)
                .clamp_min(0)
                .sqrt()
            )

    def share(self, M: Tensor) -> Tensor:
        """Return magnitude / |M + scale B A|: (out,), what each row is multiplied by; 1 where the
        row is zero.
        """
        norm = self.norm(M).to(self.magnitude.dtype)
        return torch.where(
            norm > 0, self.magnitude / norm.clamp_min(torch.finfo(norm.dtype).tiny), 1.0
        )

    def matrix(self, M: Tensor | None = None) -> Tensor:
        if M is None:
            raise SpecError(
                "What DoRA adds depends on the matrix it is added to: give matrix(M) the base's."
            )
        # In float64: the base's own matrix is taken off here and added again by the merge, which
        # would round twice.
        low, wide, share = (
            super().matrix().double(),
            M.double(),
            self.share(M).double().unsqueeze(1),
        )
        return share * (wide + low) - wide

    def forward(self, site: Any, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        share = site.broadcast_outputs(layer, self.share(site.read(layer)))
        bias = site.bias(layer)
        plain = y if bias is None else y - bias
        # 1 is taken off before rounding to y's dtype, so that a small change of a magnitude is not
        # lost beside it.
        return (share - 1).to(y.dtype) * plain + share.to(y.dtype) * super().forward(
            site, layer, x, y
        )
