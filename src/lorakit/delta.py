"""LowRank: the change s B A of one matrix. It knows no layer; a site tells it how a layer applies a matrix."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.errors import SpecError
from lorakit.spec import SCALES


class LowRank(nn.Module):
    """The low-rank change `scale * B @ A` of a matrix (out, in), with its two factors as parameters.

    Args:
        A: (rank, in), floating; the factor next to the input. (experts, rank, in) for a stack of matrices.
        B: (out, rank), same rank, dtype and device as A; (experts, out, rank) for a stack.
        alpha: strength; with `scale_rule` it gives `scale`.
        scale_rule: a name from `lorakit.spec.SCALES`.
        dropout: probability with which an input of A is dropped while training.
        kind: the kind of site it was made for ("linear", "conv1d", "embedding", …): files need it.
        kernel: axes of the patch that a row of A is for, of a convolution: files keep them.
        rows: which outputs of a fused layer these are: groups, outputs of a group, first, count; empty for all.

    Raises:
        SpecError: A and B do not share a rank; the message names both shapes.

    Source: Hu et al., LoRA, arXiv 2106.09685, section 4.1.

    >>> LowRank(torch.ones(1, 3), torch.ones(2, 1), alpha=2.0).matrix().tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """

    name = "lora"  # in Spec.delta

    def __init__(self, A: Tensor, B: Tensor, *, alpha: float, scale_rule: str = "alpha/rank", dropout: float = 0.0,
                 kind: str = "linear", kernel: tuple[int, ...] = (), rows: tuple[int, ...] = ()):  # fmt: skip
        super().__init__()
        if A.ndim < 2 or A.shape[:-2] != B.shape[:-2] or A.ndim != B.ndim or A.shape[-2] != B.shape[-1]:
            raise SpecError(f"A (rank, in) and B (out, rank) must share a rank: A is {tuple(A.shape)}, B is {tuple(B.shape)}.")
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        self.alpha, self.scale_rule, self.dropout, self.kind = float(alpha), scale_rule, float(dropout), kind
        self.kernel, self.rows = tuple(kernel), tuple(rows)
        self.scale: float = SCALES[scale_rule](alpha, A.shape[-2])

    @classmethod
    def faults(cls, kind: str) -> list[str]:
        """Return why a layer of this kind cannot be changed in this way."""
        return []

    @classmethod
    def start(cls, A: Tensor, M: Tensor, **more: Any) -> "LowRank":
        """Return one that changes nothing yet, from an initial A, for the base matrix M (out, in)."""
        return cls(A, A.new_zeros(*M.shape[:-1], A.shape[-2]), **more)

    @property
    def rank(self) -> int:
        return self.A.shape[-2]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix it changes, or of each matrix of a stack."""
        return self.B.shape[-2], self.A.shape[-1]

    def matrix(self, M: Tensor | None = None) -> Tensor:
        """Return what is added to the base matrix M: of its shape, float32, or float64 where a factor is."""
        wide = torch.promote_types(torch.promote_types(self.A.dtype, self.B.dtype), torch.float32)
        return self.scale * (self.B.to(wide) @ self.A.to(wide))

    def forward(self, site: Any, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return what is added to the layer's output `y` for its input `x`: shape and dtype of y.

        The factors go to y's dtype; x is never copied to theirs.
        """
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        h = site.project(layer, self.A.to(y.dtype), x)
        return site.expand(layer, self.B.to(y.dtype), h * self.scale, y)

    def extra_repr(self) -> str:
        out, inputs = self.shape
        return f"{inputs} -> {out}, rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}, kind={self.kind}"
