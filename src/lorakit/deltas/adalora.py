"""AdaLoRA: the change as P diag(E) Q, like an SVD, so that a budget of ranks can move between
layers during training.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.deltas.base import LowRank
from lorakit.spec import SCALES, Settings, Spec


class AdaLoRA(LowRank):
    """W' = W + scale B diag(E) A: the rows of A and columns of B stand for singular vectors, E for
    singular values.

    `lorakit.train.budget` decides which entries of E stay zero; `prune` then takes those directions
    out for good.

    Args:
        A: (rank, in); Q of the paper.
        B: (out, rank); P of the paper.
        E: (rank, 1); it starts at zero.
        kept: (initial rank,), bool: which of the directions that it started with are left; all
            where None.
        **more: as LowRank; `scale` stays that of the initial rank.

    Source: Zhang et al., AdaLoRA, arXiv 2303.10512, section 3.1.

    >>> delta = AdaLoRA(torch.eye(2), torch.eye(2), torch.tensor([[3.0], [0.0]]), alpha=2.0)
    >>> delta.matrix().tolist(), delta.prune().rank, delta.matrix().tolist()
    ([[3.0, 0.0], [0.0, 0.0]], 1, [[3.0, 0.0], [0.0, 0.0]])
    """

    name, zero_parameter = "adalora", "E"
    is_product = False
    kinds = (
        "linear",
        "conv1d",
        "embedding",
        *(f"{kind}{n}d" for kind in ("convolution", "transposed") for n in (1, 2, 3)),
    )
    inits = ("kaiming", "gaussian", "orthogonal")

    def __init__(self, A: Tensor, B: Tensor, E: Tensor, kept: Tensor | None = None, **more: Any):
        super().__init__(A, B, **more)
        self.E = nn.Parameter(E)
        self.register_buffer("kept", torch.ones(len(A), dtype=torch.bool) if kept is None else kept)
        self.kept: Tensor
        self.scale = SCALES[self.scale_rule](self.alpha, self.initial_rank)

    @classmethod
    def faults(cls, site: Any, settings: Settings, spec: Spec) -> list[str]:
        own = [
            k for k in ("rank", "alpha", "scale_rule") if getattr(settings, k) != getattr(spec, k)
        ]
        told = [
            f"delta 'adalora': all layers begin alike and the budget moves, so {', '.join(own)} cannot be overridden"
        ]
        return [*super().faults(site, settings, spec), *(told if own else [])]

    @classmethod
    def start(
        cls, A: Tensor, M: Tensor, generator: torch.Generator | None = None, **more: Any
    ) -> "AdaLoRA":
        """Return one that changes nothing yet: E zero, B gaussian with standard deviation 0.02."""
        B = torch.randn(len(M), len(A), generator=generator) * 0.02
        return cls(A, B.to(A), A.new_zeros(len(A), 1), **more)

    @property
    def initial_rank(self) -> int:
        return len(self.kept)

    def prune(self) -> "AdaLoRA":
        """Take out the directions whose E is zero, and return itself; its parameters are new ones."""
        left = self.E.detach().squeeze(1) != 0
        self.kept = self.kept.to(left.device).masked_scatter(self.kept.to(left.device), left)
        for key, dim in (("A", 0), ("B", 1), ("E", 0)):
            old: nn.Parameter = getattr(self, key)
            chosen = old.detach().index_select(dim, left.nonzero().squeeze(1)).contiguous()
            setattr(self, key, nn.Parameter(chosen, requires_grad=old.requires_grad))
        return self

    def matrix(self, M: Tensor | None = None) -> Tensor:
        wide = torch.promote_types(self.A.dtype, torch.float32)
        return self.scale * (self.B.to(wide) @ (self.E.to(wide) * self.A.to(wide)))

    def forward(self, site: Any, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        h = site.project(layer, (self.E * self.A).to(y.dtype), x)
        return site.expand(layer, self.B.to(y.dtype), h * self.scale, y)
