"""LoKr: the change as a Kronecker product of a small matrix and a larger one, the larger of low
rank where that is less.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.deltas.base import Delta, draw_uniform


class LoKr(Delta):
    """W' = W + scale (w1 kron w2); each may be given as a product: w1_a w1_b, w2_a w2_b. Built at
    every forward.

    Args:
        rank: of w2 where it is a product; `scale` depends on it in any case.
        w1: (l, m), with l k = out and m n = in; it starts at zero.
        w1_a: (l, rank).
        w1_b: (rank, m).
        w2: (k, n).
        w2_a: (k, rank).
        w2_b: (rank, n).
        **more: as Delta.

    Source: Yeh et al., LyCORIS, arXiv 2309.14859, section 3.2; sizes and start are those of PEFT
        0.21, `tuners/lokr`.

    >>> LoKr(1, torch.tensor([[1.0, 2.0]]), w2=torch.ones(2, 1), alpha=1.0).matrix().tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """

    name = "lokr"
    kinds = ("linear", "conv1d", "convolution1d", "convolution2d", "convolution3d")
    inits, biases = ("kaiming",), False

    def __init__(
        self,
        rank: int,
        w1: Tensor | None = None,
        *,
        w1_a: Tensor | None = None,
        w1_b: Tensor | None = None,
        w2: Tensor | None = None,
        w2_a: Tensor | None = None,
        w2_b: Tensor | None = None,
        **more: Any,
    ):
        super().__init__(rank, **more)
        self.rank, self.zero_parameter = rank, "w1" if w1_a is None else "w1_a"
        given = {"w1": w1, "w1_a": w1_a, "w1_b": w1_b, "w2": w2, "w2_a": w2_a, "w2_b": w2_b}
        for key, tensor in given.items():
            self.register_parameter(key, None if tensor is None else nn.Parameter(tensor))

    @classmethod
    def start(cls, A: Tensor, M: Tensor, generator: torch.Generator, **more: Any) -> "LoKr":
        """Return one that changes nothing yet: w1 zero, the rest kaiming uniform."""
        patch = math.prod(more.get("kernel", ()))
        (out, k), (inputs, n) = nearest_divisors(M.shape[0]), nearest_divisors(M.shape[1] // patch)
        rank, w1, n_all = len(A), A.new_zeros(out, inputs), n * patch
        if rank >= max(k, n) / 2:
            return cls(rank, w1, w2=draw_uniform(A, generator, k, n_all), **more)
        return cls(
            rank,
            w1,
            w2_a=draw_uniform(A, generator, k, rank),
            w2_b=draw_uniform(A, generator, rank, n_all),
            **more,
        )

    @property
    def shape(self) -> tuple[int, int]:
        w1, w2 = self.factors()
        return w1.shape[0] * w2.shape[0], w1.shape[1] * w2.shape[1]

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return w1 and w2, in float32 or better."""
        found = []
        for key in ("w1", "w2"):
            whole, a, b = (self._parameters[key + end] for end in ("", "_a", "_b"))
            parts = [
                w.to(torch.promote_types(w.dtype, torch.float32))
                for w in (whole, a, b)
                if w is not None
            ]
            found.append(parts[0] if len(parts) == 1 else parts[0] @ parts[1])
        return found[0], found[1]

    def matrix(self, M: Tensor | None = None) -> Tensor:
        w1, w2 = self.factors()
        return self.scale * torch.kron(w1, w2.contiguous())


def nearest_divisors(size: int) -> tuple[int, int]:
    """Return the two divisors of a size that are nearest to each other, the smaller first.

    >>> nearest_divisors(12), nearest_divisors(16), nearest_divisors(7)
    ((3, 4), (4, 4), (1, 7))
    """
    small = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return small, size // small
