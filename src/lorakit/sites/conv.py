"""Convolutions of one, two and three dimensions, and transposed ones: groups, strides, dilation,
every padding.

A convolution is a matrix applied to patches: M is (out, in / groups * kernel), and A x is the
    layer's own convolution with
rank output channels, so whatever its stride and padding are, they are those of the layer. With
groups, every group's patch goes through the same A. A transposed convolution is the mirror image: A
mixes channels, B spreads them over the kernel.

Source: the patch form of Hu et al., arXiv 2106.09685 (any dense layer); rank is at most `rank`,
    unlike loralib's ConvLoRA.
"""

from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.sites.base import Site
from lorakit.spec import Settings


class ConvSite(Site):
    """torch.nn.Conv1d, Conv2d or Conv3d: M is the weight with all axes but the first in one."""

    def __init__(self, dims: int):
        self.kind, self.dims, self.input_axes = f"convolution{dims}d", dims, dims + 1
        self.type: type[nn.Module] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]

    def supports(self, layer: Any) -> bool:
        # A subclass with a forward of its own may use the weight otherwise.
        plain = isinstance(layer, self.type) and type(layer).forward is self.type.forward
        weight = layer._parameters.get("weight") if plain else None
        return weight is not None and weight.is_floating_point()

    def read(self, layer: Any) -> Tensor:
        return layer.weight.detach().flatten(1)

    def to_weight(self, layer: Any, M: Tensor) -> Tensor:
        return M.view(layer.weight.shape)

    def kernel(self, layer: Any) -> tuple[int, ...]:
        return tuple(layer.weight.shape[2:])

    def project(self, layer: Any, A: Tensor, x: Tensor) -> Tensor:
        kernel = A.view(A.shape[0], *layer.weight.shape[1:])
        return layer._conv_forward(x, kernel.repeat(layer.groups, *[1] * (kernel.ndim - 1)), None)

    def apply(self, layer: Any, M: Tensor, x: Tensor) -> Tensor:
        return layer._conv_forward(x, M.view(layer.weight.shape), None)

    def bias(self, layer: Any) -> Tensor | None:
        return None if layer.bias is None else layer.bias.view(-1, *[1] * self.dims)

    def broadcast_outputs(self, layer: Any, vector: Tensor) -> Tensor:
        return vector.view(-1, *[1] * self.dims)

    def expand(self, layer: Any, B: Tensor, h: Tensor, y: Tensor) -> Tensor:
        return self.convolve(h, B.view(*B.shape, *[1] * self.dims), groups=layer.groups)


class ConvTransposeSite(Site):
    """torch.nn.ConvTranspose1d, 2d or 3d: M is (out / groups * kernel, in), the weight (in, out /
    groups, kernel) turned.
    """

    def __init__(self, dims: int):
        self.kind, self.dims, self.input_axes = f"transposed{dims}d", dims, dims + 1
        self.type: type[nn.Module] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[
            dims - 1
        ]
        self.convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        self.spread: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]

    def supports(self, layer: Any) -> bool:
        plain = isinstance(layer, self.type) and type(layer).forward is self.type.forward
        weight = layer._parameters.get("weight") if plain else None
        return weight is not None and weight.is_floating_point()

    def read(self, layer: Any) -> Tensor:
        return layer.weight.detach().flatten(1).T

    def to_weight(self, layer: Any, M: Tensor) -> Tensor:
        return M.T.reshape(layer.weight.shape)

    def fan_in(self, layer: Any) -> int:
        return layer.weight.shape[0] // layer.groups

    def project(self, layer: Any, A: Tensor, x: Tensor) -> Tensor:
        # (rank, in) as one (rank, in / groups) for each group, on top of each other.
        parts = (
            A.view(A.shape[0], layer.groups, -1)
            .transpose(0, 1)
            .reshape(layer.groups * A.shape[0], -1)
        )
        return self.convolve(x, parts.view(*parts.shape, *[1] * self.dims), groups=layer.groups)

    def expand(self, layer: Any, B: Tensor, h: Tensor, y: Tensor) -> Tensor:
        kernel = B.T.reshape(B.shape[1], *layer.weight.shape[1:]).repeat(
            layer.groups, *[1] * (self.dims + 1)
        )
        sizes, settings = (
            (y.shape[-self.dims :], h.shape[-self.dims :]),
            (layer.stride, layer.padding, layer.dilation),
        )
        axes = zip(*sizes, *settings, layer.kernel_size, strict=True)
        # Not the layer's own output_padding: its caller may give an output_size.
        ends = [size - (n - 1) * s + 2 * p - d * (k - 1) - 1 for size, n, s, p, d, k in axes]
        return self.spread(
            h, kernel, None, layer.stride, layer.padding, ends, layer.groups, layer.dilation
        )

    def faults(self, layer: Any, settings: Settings) -> list[str]:
        inputs, most = layer.weight.shape[0], prod(layer.weight.shape[1:])
        if settings.rank > min(inputs, most):
            return [
                f"rank {settings.rank} is above min(in, out x kernel) = {min(inputs, most)} ({inputs} -> {most})"
            ]
        return []


CONVOLUTIONS = [
    *(ConvSite(dims) for dims in (1, 2, 3)),
    *(ConvTransposeSite(dims) for dims in (1, 2, 3)),
]
