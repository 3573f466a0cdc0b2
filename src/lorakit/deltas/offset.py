"""OffsetLowRank: low rank whose factors do not start at zero change; where they started is kept beside
them, and taken off.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.deltas.base import LowRank


class OffsetLowRank(LowRank):
    """The change `scale * (B A - B0 A0)`: A and B train, A0 and B0 stay as they were at the start.

    The papers write `W - scale B0 A0` over the base and add `scale B A`: the same function, and the
    same gradients. Here the base is never written, so other adapters and files fit it as before.

    Args:
        A: (rank, in), of the start or trained.
        B: (out, rank).
        A0: the frozen start of A; A itself where it is not given.
        B0: the frozen start of B.
        **more: as LowRank.

    Source: Meng et al., PiSSA, arXiv 2404.02948, section 3 and appendix C (the difference as one
        LoRA of rank 2r).

    >>> delta = OffsetLowRank(torch.ones(1, 2), torch.ones(1, 1), alpha=1.0)
    >>> start = delta.matrix().tolist()
    >>> delta.B.data += 0.5
    >>> start, delta.matrix().tolist()
    ([[0.0, 0.0]], [[0.5, 0.5]])
    """

    is_product = False

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        *,
        A0: Tensor | None = None,
        B0: Tensor | None = None,
        **more: Any,
    ):
        super().__init__(A, B, **more)
        self.register_buffer("A0", (A if A0 is None else A0).detach().clone())
        self.register_buffer("B0", (B if B0 is None else B0).detach().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A (2 rank, in) and B (out, 2 rank) of the change.

        B A - B0 A0 is (B - B0) A + B0 (A - A0): zero to the bit at the start, and later rounded at
        the size of what was learned. The difference of the two products would be rounded at theirs,
        which is that of the base.
        """
        start: tuple[Any, Any] = (self.A0, self.B0)
        return torch.cat([self.A, self.A - start[0]], -2), torch.cat(
            [self.B - start[1], start[1]], -1
        )

    def matrix(self, M: Tensor | None = None) -> Tensor:
        A, B = self.factors()
        wide = torch.promote_types(A.dtype, torch.float32)
        return self.scale * (B.to(wide) @ A.to(wide))

    def forward(self, site: Any, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        A, B = self.factors()
        h = site.project(layer, A.to(y.dtype), x)
        return site.expand(layer, B.to(y.dtype), h * self.scale, y)

    def to_low_rank(self) -> LowRank:
        """Return the same change as low rank of twice the rank, from the four factors as they are:
        [A; A0] and [B, -B0].
        """
        start: tuple[Any, Any] = (self.A0, self.B0)
        A, B = (
            torch.cat([self.A.detach(), start[0]], -2),
            torch.cat([self.B.detach(), -start[1]], -1),
        )
        return LowRank(
            A,
            B,
            alpha=alpha_at_double_rank(self.alpha, self.scale_rule),
            scale_rule=self.scale_rule,
            dropout=self.dropout,
            kind=self.kind,
            kernel=self.kernel,
            output_slice=self.output_slice,
        )

    @classmethod
    def from_low_rank(cls, A: Tensor, B: Tensor, **more: Any) -> "OffsetLowRank":
        """Return what `to_low_rank` was made from, bit for bit."""
        (A, A0), (B, B0) = A.chunk(2, -2), B.chunk(2, -1)
        return cls(A.clone(), B.clone(), A0=A0, B0=-B0, **more)


def alpha_at_double_rank(alpha: float, scale_rule: str) -> float:
    """Return the alpha that keeps the scale at twice the rank."""
    return alpha * (2 if scale_rule == "alpha/rank" else 2**0.5)
