"""The output of every kind of layer, written out: from its weight, and from two factors."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONVOLVE_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    y = x @ weight.T
    return y if bias is None else y + bias


def conv1d(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    y = x @ weight
    return y if bias is None else y + bias


def embedding(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return weight[x]


def linear_factors(A: Tensor, B: Tensor, x: Tensor) -> Tensor:
    return x @ A.T @ B.T


def embedding_factors(A: Tensor, B: Tensor, x: Tensor) -> Tensor:
    return A.T[x] @ B.T


@dataclass(frozen=True)
class Patches:
    """The formulas of a convolution, one group at a time on a padded input, by a plain F.convNd.

    Args:
        kernel: (k, ...), one size for each dimension; stride and dilation likewise.
        padding: (before, after) of every dimension.
        groups: number of groups.
        mode: padding mode of F.pad.
        transposed: whether it is a transposed convolution; then padding is cut off its output.
        extra: output padding of a transposed convolution, for each dimension.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int = 1
    mode: str = "constant"
    transposed: bool = False
    extra: tuple[int, ...] = ()

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """Apply a weight (out, in, kernel) of one group; (in, out, kernel) if it is transposed."""
        if self.transposed:
            return self._apply_transposed(weight, x)
        around: list[int] = []
        for before, after in reversed(self.padding):
            around += [before, after]
        padded = F.pad(x, around, mode=self.mode)
        convolve = CONVOLVE[len(self.kernel)]
        return convolve(padded, weight, None, self.stride, 0, self.dilation)

    def _apply_transposed(self, weight: Tensor, x: Tensor) -> Tensor:
        convolve = CONVOLVE_TRANSPOSED[len(self.kernel)]
        y = convolve(x, weight, None, self.stride, 0, 0, 1, self.dilation)
        for axis, (before, after) in enumerate(self.padding, 2):
            ends = (-before, self.extra[axis - 2] - after)
            y = F.pad(y.movedim(axis, -1), ends).movedim(-1, axis)
        return y

    def dense(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        """Return the output of the full weight."""
        weights = weight.chunk(self.groups)
        inputs = x.chunk(self.groups, dim=1)
        groups = [self.apply(*pair) for pair in zip(weights, inputs, strict=True)]
        y = torch.cat(groups, dim=1)
        if bias is None:
            return y
        return y + bias.view(-1, *[1] * len(self.kernel))

    def factors(self, A: Tensor, B: Tensor, x: Tensor) -> Tensor:
        """Return (B A) x, in two steps."""
        inputs = x.chunk(self.groups, dim=1)
        if self.transposed:
            pairs = zip(A.chunk(self.groups, dim=1), inputs, strict=True)
            groups = [self._transposed_group(A_part, B, part) for A_part, part in pairs]
        else:
            pairs = zip(B.chunk(self.groups), inputs, strict=True)
            groups = [self._group(A, B_part, part) for B_part, part in pairs]
        return torch.cat(groups, dim=1)

    def _group(self, A: Tensor, B: Tensor, x: Tensor) -> Tensor:
        projected = self.apply(A.view(A.shape[0], -1, *self.kernel), x)
        return torch.einsum("or,nr...->no...", B, projected)

    def _transposed_group(self, A: Tensor, B: Tensor, x: Tensor) -> Tensor:
        projected = torch.einsum("ri,ni...->nr...", A, x)
        return self.apply(B.T.reshape(A.shape[0], -1, *self.kernel), projected)
