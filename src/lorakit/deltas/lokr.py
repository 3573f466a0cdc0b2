"""LoKr: the change as a Kronecker product, its second factor of low rank if that is smaller."""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from lorakit.deltas.base import Delta, DeltaOptions, draw_uniform
from lorakit.linalg import multiply_wide, widen


class LoKr(Delta):
    """W' = W + scale (w1 kron w2); each factor may be a product, w1_a w1_b or w2_a w2_b.

    A full w2 of a one-dimensional convolution is the first factor, w2 kron w1: PEFT multiplies it
    so.

    Cost: the change is built in every forward pass.

    Args:
        rank: of a factor that is a product; `scale` depends on it in any case.
        w1: (l, m), with l k = out and m n = in; it starts at zero.
        w1_a: (l, rank).
        w1_b: (rank, m).
        w2: (k, n).
        w2_a: (k, rank).
        w2_b: (rank, n).
        **options: as Delta.

    Source: Yeh et al., LyCORIS, arXiv 2309.14859, section 3.2; sizes and start are those of PEFT
        0.21, `tuners/lokr`.

    >>> LoKr(1, torch.tensor([[1.0, 2.0]]), w2=torch.ones(2, 1), alpha=1.0).matrix().tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """

    name = "lokr"
    has_matrix_rank = False
    kinds = ("linear", "conv1d", "convolution1d", "convolution2d", "convolution3d")
    inits = ("kaiming",)
    biases = False

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
        **options: Unpack[DeltaOptions],
    ):
        super().__init__(rank, **options)
        self.factor_rank = rank
        self.zero_parameter = "w1" if w1_a is None else "w1_a"
        factors = {"w1": w1, "w1_a": w1_a, "w1_b": w1_b, "w2": w2, "w2_a": w2_a, "w2_b": w2_b}
        for key, factor in factors.items():
            self.register_parameter(key, None if factor is None else nn.Parameter(factor))

    @classmethod
    def start(
        cls,
        A: Tensor,
        M: Tensor,
        generator: torch.Generator | None = None,
        *,
        shared: nn.Module | None = None,
        **options: Unpack[DeltaOptions],
    ) -> "LoKr":
        """Return a delta that changes nothing yet: w1 is zero, the rest kaiming uniform."""
        rank = len(A)
        kernel_size = math.prod(options.get("kernel", ()))
        small_out, large_out = nearest_divisors(M.shape[0])
        small_in, large_in = nearest_divisors(M.shape[1] // kernel_size)
        w1 = A.new_zeros(small_out, small_in)
        width = large_in * kernel_size
        if rank >= max(large_out, large_in) / 2:
            w2 = draw_uniform(A, generator, large_out, width)
            return cls(rank, w1, w2=w2, **options)
        w2_a = draw_uniform(A, generator, large_out, rank)
        w2_b = draw_uniform(A, generator, rank, width)
        return cls(rank, w1, w2_a=w2_a, w2_b=w2_b, **options)

    @property
    def rank(self) -> int:
        return self.factor_rank

    @property
    def shape(self) -> tuple[int, int]:
        w1, w2 = self.factor("w1"), self.factor("w2")
        return w1.shape[0] * w2.shape[0], w1.shape[1] * w2.shape[1]

    def factor(self, key: str) -> Tensor:
        """Return w1 or w2, in float32 or better."""
        full = self._parameters[key]
        if full is not None:
            return widen(full)
        left = self.get_parameter(f"{key}_a")
        right = self.get_parameter(f"{key}_b")
        return multiply_wide(left, right)

    def matrix(self, M: Tensor | None = None) -> Tensor:
        w1, w2 = self.factor("w1"), self.factor("w2")
        # torch.kron, in operations that every exporter knows
        if len(self.kernel) == 1 and self._parameters["w2"] is not None:
            by_channel = w2.reshape(len(w2), -1, *self.kernel)
            product = by_channel[:, None, :, None, :] * w1[None, :, None, :, None]
        else:
            product = w1[:, None, :, None] * w2[None, :, None, :]
        return self.scale * product.reshape(self.shape)


def nearest_divisors(size: int) -> tuple[int, int]:
    """Return the two divisors of a size that are nearest to each other, the smaller first.

    >>> nearest_divisors(12), nearest_divisors(16), nearest_divisors(7)
    ((3, 4), (4, 4), (1, 7))
    """
    small = math.isqrt(size)
    while size % small:
        small -= 1
    return small, size // small
