"""AdaLoRA: the change as P diag(E) Q, so that training can move ranks between layers."""

from typing import Unpack

import torch
from torch import Tensor, nn

from lorakit.deltas.base import DeltaOptions, LowRank, override_faults
from lorakit.linalg import multiply_wide, wide_dtype
from lorakit.sites.base import Site
from lorakit.spec import SCALES, Settings, Spec

START_STD = 0.02  # of B


class AdaLoRA(LowRank):
    """W' = W + scale B diag(E) A: A and B hold singular vectors, E the singular values.

    `lorakit.train.budget` decides which entries of E are zero; `prune` then removes those
    directions.

    Args:
        A: (rank, in); Q of the paper.
        B: (out, rank); P of the paper.
        E: (rank, 1); it starts at zero.
        kept: (initial rank,), bool: the directions of the start that are left; all for None.
        **options: as LowRank; `scale` stays that of the initial rank.

    Source: Zhang et al., AdaLoRA, arXiv 2303.10512, section 3.1.

    >>> delta = AdaLoRA(torch.eye(2), torch.eye(2), torch.tensor([[3.0], [0.0]]), alpha=2.0)
    >>> delta.matrix().tolist(), delta.prune().rank, delta.matrix().tolist()
    ([[3.0, 0.0], [0.0, 0.0]], 1, [[3.0, 0.0], [0.0, 0.0]])
    """

    name = "adalora"
    kinds = (
        "linear",
        "conv1d",
        "embedding",
        "convolution1d",
        "convolution2d",
        "convolution3d",
        "transposed1d",
        "transposed2d",
        "transposed3d",
    )
    inits = ("kaiming", "gaussian", "orthogonal")
    is_product = False
    zero_parameter = "E"
    kept: Tensor

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        E: Tensor,
        kept: Tensor | None = None,
        **options: Unpack[DeltaOptions],
    ):
        super().__init__(A, B, **options)
        self.E = nn.Parameter(E)
        if kept is None:
            kept = torch.ones(len(A), dtype=torch.bool)
        self.register_buffer("kept", kept)
        self.scale = SCALES[self.scale_rule](self.alpha, self.initial_rank)

    @classmethod
    def faults(cls, site: Site, settings: Settings, spec: Spec) -> list[str]:
        faults = super().faults(site, settings, spec)
        reason = "all layers start with the same rank, and training moves the budget"
        return faults + override_faults(cls.name, settings, spec, reason)

    @classmethod
    def start(
        cls,
        A: Tensor,
        M: Tensor,
        generator: torch.Generator | None = None,
        *,
        shared: nn.Module | None = None,
        **options: Unpack[DeltaOptions],
    ) -> "AdaLoRA":
        """Return a delta that changes nothing yet: E is zero, B gaussian."""
        B = torch.randn(len(M), len(A), generator=generator) * START_STD
        return cls(A, B.to(A), A.new_zeros(len(A), 1), **options)

    @property
    def initial_rank(self) -> int:
        return len(self.kept)

    def prune(self) -> "AdaLoRA":
        """Remove the directions whose E is zero, and return the delta; its parameters are new."""
        is_left = self.E.detach().squeeze(1) != 0
        left = is_left.nonzero().squeeze(1)
        kept = self.kept.to(is_left.device)
        self.kept = kept.masked_scatter(kept, is_left)
        for key, axis in (("A", 0), ("B", 1), ("E", 0)):
            parameter = self.get_parameter(key)
            values = parameter.detach().index_select(axis, left).contiguous()
            setattr(self, key, nn.Parameter(values, requires_grad=parameter.requires_grad))
        return self

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.E * self.A, self.B

    def matrix(self, M: Tensor | None = None) -> Tensor:
        # Not from `factors`, which rounds E A to the dtype of the parameters.
        wide = wide_dtype(self.A)
        A = self.E.to(wide) * self.A.to(wide)
        return self.scale * multiply_wide(self.B, A)
