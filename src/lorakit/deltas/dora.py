"""DoRA: low rank changes the direction of each row of the matrix, a trained magnitude its norm."""

from typing import Unpack

import torch
from torch import Tensor, nn

from lorakit.deltas.base import DeltaOptions, LowRank
from lorakit.errors import SpecError
from lorakit.linalg import wide_dtype
from lorakit.sites.base import Site
from lorakit.spec import Settings, Spec


class DoRA(LowRank):
    """W' = magnitude * V / |V| with V = W + scale B A, row by row.

    The norm |V| is a constant for the gradient.

    Args:
        A: (rank, in).
        B: (out, rank).
        magnitude: (out,); it starts as the norm of each row of W, so that a new DoRA changes
            nothing.
        **options: as LowRank.

    Source: Liu et al., DoRA, arXiv 2402.09353, equations 5 and 11 (the detached norm) of section
        4.3.

    >>> W = torch.tensor([[3.0, 4.0]])
    >>> delta = DoRA.start(torch.zeros(1, 2), W, alpha=1.0)
    >>> delta.magnitude.tolist(), delta.matrix(W).tolist()
    ([5.0], [[0.0, 0.0]])
    """

    name = "dora"
    is_product = False

    def __init__(self, A: Tensor, B: Tensor, magnitude: Tensor, **options: Unpack[DeltaOptions]):
        super().__init__(A, B, **options)
        self.magnitude = nn.Parameter(magnitude)

    @classmethod
    def faults(cls, site: Site, settings: Settings, spec: Spec) -> list[str]:
        if site.kind == "experts":
            return ["delta 'dora': a stack of experts can only have delta 'lora'"]
        if site.output_slice:
            # In a file the parts share one pair of factors, which other readers would misread.
            hint = "use it, or name the whole layer"
            return [f"delta 'dora': a part of a fused layer can only have delta 'lora'; {hint}"]
        if site.kind.startswith("transposed"):
            # The rows of such a matrix are positions of the kernel.
            return ["delta 'dora': the matrix of a transposed convolution has no row per output"]
        return []

    @classmethod
    def start(
        cls,
        A: Tensor,
        M: Tensor,
        generator: torch.Generator | None = None,
        *,
        shared: nn.Module | None = None,
        **options: Unpack[DeltaOptions],
    ) -> "DoRA":
        delta = cls(A, A.new_zeros(len(M), len(A)), A.new_zeros(len(M)), **options)
        delta.magnitude.data.copy_(delta.norm(M))
        return delta

    def norm(self, M: Tensor) -> Tensor:
        """Return the norm of each row of M + scale B A: (out,), float32 or better, no gradient.

        Cost: M is read once, and no sum of M and the change is built. The square of the norm is
            |M|^2 + 2 scale <M, B A> + scale^2 |B A|^2, each term from the factors.
        """
        with torch.no_grad():
            wide = wide_dtype(M, self.A)
            A, B, base = self.A.to(wide), self.B.to(wide), M.to(wide)
            # The inner products have no names: a name would keep them in memory.
            mixed = (B * (base @ A.T)).sum(1)  # <M, B A>
            product_square = ((B @ (A @ A.T)) * B).sum(1)  # |B A|^2
            base_square = base.square().sum(1)
            square = base_square + 2 * self.scale * mixed + self.scale**2 * product_square
            return square.clamp_min(0).sqrt()

    def row_factor(self, M: Tensor) -> Tensor:
        """Return magnitude / |M + scale B A|: (out,), 1 for a row of zeros."""
        norm = self.norm(M).to(self.magnitude.dtype)
        tiny = torch.finfo(norm.dtype).tiny
        return torch.where(norm > 0, self.magnitude / norm.clamp_min(tiny), 1.0)

    def matrix(self, M: Tensor | None = None) -> Tensor:
        if M is None:
            raise SpecError(
                "The change of DoRA depends on the base's matrix.", advice="Call matrix(M) with it."
            )
        # In float64: the merge adds the base's matrix again, which would round twice.
        product, base = super().matrix().double(), M.double()
        factor = self.row_factor(M).double().unsqueeze(1)
        return factor * (base + product) - base

    def forward(self, site: Site, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        factor = site.broadcast_outputs(layer, self.row_factor(site.read(layer)))
        bias = site.bias(layer)
        without_bias = y if bias is None else y - bias
        product = super().forward(site, layer, x, y)
        # 1 is subtracted before rounding to y's dtype, so that a small change is not lost.
        return (factor - 1).to(y.dtype) * without_bias + factor.to(y.dtype) * product
