"""LoHa: the change as two low-rank products multiplied place by place, so that its rank is up to
the square of theirs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lorakit.deltas.base import Delta, draw_uniform


class LoHa(Delta):
    """W' = W + scale (w1_a w1_b) * (w2_a w2_b), where * goes place by place. Cost: the change is
    built at every forward.

    Args:
        w1_a: (out, rank).
        w1_b: (rank, in).
        w2_a: (out, rank).
        w2_b: (rank, in); it starts at zero.
        **more: as Delta.

    Source: Hyeon-Woo et al., FedPara, arXiv 2108.06098, section 2.1; the start is that of PEFT
        0.21, `tuners/loha`.

    >>> ones = torch.ones
    >>> LoHa(2 * ones(1, 1), ones(1, 2), 3 * ones(1, 1), ones(1, 2), alpha=1.0).matrix().tolist()
    [[6.0, 6.0]]
    """

    name, zero_parameter = "loha", "w2_b"
    kinds = ("linear", "conv1d", "convolution1d", "convolution2d", "convolution3d")
    inits, biases = ("kaiming",), False

    def __init__(self, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, **more: Any):
        super().__init__(w1_b.shape[0], **more)
        self.w1_a, self.w1_b = nn.Parameter(w1_a), nn.Parameter(w1_b)
        self.w2_a, self.w2_b = nn.Parameter(w2_a), nn.Parameter(w2_b)

    @classmethod
    def start(cls, A: Tensor, M: Tensor, generator: torch.Generator, **more: Any) -> "LoHa":
        """Return one that changes nothing yet: all kaiming uniform, the first w_b being A, and the
        second zero.
        """
        w1_a, w2_a = (draw_uniform(A, generator, len(M), len(A)) for _ in range(2))
        return cls(w1_a, A, w2_a, torch.zeros_like(A), **more)

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.w1_a.shape[0], self.w1_b.shape[1]

    def matrix(self, M: Tensor | None = None) -> Tensor:
        wide = torch.promote_types(self.w1_a.dtype, torch.float32)
        w1_a, w1_b, w2_a, w2_b = (w.to(wide) for w in (self.w1_a, self.w1_b, self.w2_a, self.w2_b))
        return self.scale * ((w1_a @ w1_b) * (w2_a @ w2_b))
