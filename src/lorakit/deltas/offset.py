"""OffsetLowRank: low rank minus its frozen start, for factors that start with a product B A."""

from typing import Unpack

import torch
from torch import Tensor

from lorakit.deltas.base import DeltaOptions, LowRank


class OffsetLowRank(LowRank):
    """The change `scale * (B A - B0 A0)`: A and B train, A0 and B0 keep their values at the start.

    The papers replace the base by `W - scale B0 A0` and add `scale B A`: the same function, and the
    same gradients. Here the base is never written, so other adapters and files still fit it.

    Args:
        A: (rank, in), at the start or trained.
        B: (out, rank).
        A0: A at the start; the value of A if it is not given.
        B0: B at the start.
        **options: as LowRank.

    Source: Meng et al., PiSSA, arXiv 2404.02948, section 3 and appendix C (the difference as one
        LoRA of rank 2r).

    >>> delta = OffsetLowRank(torch.ones(1, 2), torch.ones(1, 1), alpha=1.0)
    >>> at_the_start = delta.matrix().tolist()
    >>> delta.B.data += 0.5
    >>> at_the_start, delta.matrix().tolist()
    ([[0.0, 0.0]], [[0.5, 0.5]])
    """

    is_product = False
    A0: Tensor
    B0: Tensor

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        *,
        A0: Tensor | None = None,
        B0: Tensor | None = None,
        **options: Unpack[DeltaOptions],
    ):
        super().__init__(A, B, **options)
        self.register_buffer("A0", (A if A0 is None else A0).detach().clone())
        self.register_buffer("B0", (B if B0 is None else B0).detach().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A (2 rank, in) and B (out, 2 rank) of the change.

        B A - B0 A0 is (B - B0) A + B0 (A - A0): exactly zero at the start, and later rounded
        relative to what was learned. The difference of the two products would be rounded relative
        to the products, which are as large as the base.
        """
        A = torch.cat([self.A, self.A - self.A0], -2)
        B = torch.cat([self.B - self.B0, self.B0], -1)
        return A, B

    def to_low_rank(self) -> LowRank:
        """Return the same change as a LowRank of twice the rank, from [A; A0] and [B, -B0]."""
        A = torch.cat([self.A.detach(), self.A0], -2)
        B = torch.cat([self.B.detach(), -self.B0], -1)
        options = self.options()
        options["alpha"] = alpha_at_double_rank(self.alpha, self.scale_rule)
        return LowRank(A, B, **options)

    @classmethod
    def from_low_rank(
        cls, A: Tensor, B: Tensor, **options: Unpack[DeltaOptions]
    ) -> "OffsetLowRank":
        """Return the delta whose `to_low_rank` has these factors, bit for bit."""
        trained_A, A0 = A.chunk(2, -2)
        trained_B, B0 = B.chunk(2, -1)
        return cls(trained_A.clone(), trained_B.clone(), A0=A0, B0=-B0, **options)


def alpha_at_double_rank(alpha: float, scale_rule: str) -> float:
    """Return the alpha that gives the same scale at twice the rank."""
    return alpha * (2 if scale_rule == "alpha/rank" else 2**0.5)
