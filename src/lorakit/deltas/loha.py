"""LoHa: the change as the elementwise product of two low-rank products."""

from typing import Unpack

import torch
from torch import Tensor, nn

from lorakit.deltas.base import Delta, DeltaOptions, draw_uniform
from lorakit.linalg import multiply_wide


class LoHa(Delta):
    """W' = W + scale (w1_a w1_b) * (w2_a w2_b), with an elementwise *.

    The rank of the change is up to the square of the factors' rank.

    Cost: the change is built in every forward pass.

    Args:
        w1_a: (out, rank).
        w1_b: (rank, in).
        w2_a: (out, rank).
        w2_b: (rank, in); it starts at zero.
        **options: as Delta.

    Source: Hyeon-Woo et al., FedPara, arXiv 2108.06098, section 2.1; the start is that of PEFT
        0.21, `tuners/loha`.

    >>> ones = torch.ones
    >>> LoHa(2 * ones(1, 1), ones(1, 2), 3 * ones(1, 1), ones(1, 2), alpha=1.0).matrix().tolist()
    [[6.0, 6.0]]
    """

    name = "loha"
    has_matrix_rank = False
    kinds = ("linear", "conv1d", "convolution1d", "convolution2d", "convolution3d")
    inits = ("kaiming",)
    biases = False
    zero_parameter = "w2_b"

    def __init__(
        self,
        w1_a: Tensor,
        w1_b: Tensor,
        w2_a: Tensor,
        w2_b: Tensor,
        **options: Unpack[DeltaOptions],
    ):
        super().__init__(w1_b.shape[0], **options)
        self.w1_a = nn.Parameter(w1_a)
        self.w1_b = nn.Parameter(w1_b)
        self.w2_a = nn.Parameter(w2_a)
        self.w2_b = nn.Parameter(w2_b)

    @classmethod
    def start(
        cls,
        A: Tensor,
        M: Tensor,
        generator: torch.Generator | None = None,
        *,
        shared: nn.Module | None = None,
        **options: Unpack[DeltaOptions],
    ) -> "LoHa":
        """Return a delta that changes nothing yet: w1_b is A, w2_b zero, the rest uniform."""
        w1_a = draw_uniform(A, generator, len(M), len(A))
        w2_a = draw_uniform(A, generator, len(M), len(A))
        return cls(w1_a, A, w2_a, torch.zeros_like(A), **options)

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.w1_a.shape[0], self.w1_b.shape[1]

    def matrix(self, M: Tensor | None = None) -> Tensor:
        w1 = multiply_wide(self.w1_a, self.w1_b)
        w2 = multiply_wide(self.w2_a, self.w2_b)
        return self.scale * (w1 * w2)
