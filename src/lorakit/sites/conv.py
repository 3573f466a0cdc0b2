"""Sites of convolutions of one, two and three dimensions, plain and transposed.

A convolution is a matrix applied to patches: M is (out, in / groups * kernel). A x is the layer's
own convolution with `rank` output channels, so its stride, padding and dilation are the layer's.
With groups, the patches of all groups go through the same A. A transposed convolution is the mirror
image: A mixes the channels, and B spreads them over the kernel.

Source: the patch form of Hu et al., arXiv 2106.09685 (any dense layer). The rank of the change is
    at most `rank`, unlike that of loralib's ConvLoRA.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lorakit.sites.base import LayerT, Site, compare_rank, keeps_forward, own_weight

# By number of dimensions.
CONVOLVE: Mapping[int, Callable[..., Tensor]] = {
    1: F.conv1d,
    2: F.conv2d,
    3: F.conv3d,
}
CONVOLVE_TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


class AnyConvSite(Site[LayerT]):
    """A convolution of one, two or three dimensions, plain or transposed.

    Args:
        kind: name of this kind of site.
        layer_class: torch's class of these layers.
        dims: number of dimensions.
    """

    def __init__(self, kind: str, layer_class: type[LayerT], dims: int):
        self.kind = kind
        self.layer_class = layer_class
        self.dims = dims
        self.input_axes = dims + 1  # channels and positions
        self.ones = (1,) * dims
        self.convolve = CONVOLVE[dims]

    def supports(self, layer: nn.Module) -> bool:
        # A subclass with a forward of its own may use the weight in another way.
        if not keeps_forward(layer, self.layer_class):
            return False
        return own_weight(layer) is not None

    def broadcast_outputs(self, layer: LayerT, vector: Tensor) -> Tensor:
        return vector.view(-1, *self.ones)

    def bias(self, layer: LayerT) -> Tensor | None:
        bias = super().bias(layer)
        if bias is None:
            return None
        return self.broadcast_outputs(layer, bias)


@final
class ConvSite(AnyConvSite[_ConvNd]):
    """torch.nn.Conv1d, Conv2d or Conv3d: M is the weight with all axes but the first flattened."""

    def read(self, layer: _ConvNd) -> Tensor:
        return layer.weight.detach().flatten(1)

    def to_weight(self, layer: _ConvNd, M: Tensor) -> Tensor:
        return M.view(layer.weight.shape)

    def kernel(self, layer: _ConvNd) -> tuple[int, ...]:
        return tuple(layer.weight.shape[2:])

    def project(self, layer: _ConvNd, A: Tensor, x: Tensor) -> Tensor:
        rank = A.shape[0]
        patch = layer.weight.shape[1:]  # (in / groups, *kernel)
        kernel = A.view(rank, *patch)
        kernel = kernel.repeat(layer.groups, 1, *self.ones)  # (groups * rank, *patch)
        return layer._conv_forward(x, kernel, None)

    def expand(self, layer: _ConvNd, B: Tensor, projected: Tensor, y: Tensor) -> Tensor:
        kernel = B.view(*B.shape, *self.ones)
        return self.convolve(projected, kernel, groups=layer.groups)

    def apply(self, layer: _ConvNd, M: Tensor, x: Tensor) -> Tensor:
        weight = self.to_weight(layer, M)
        return layer._conv_forward(x, weight, None)


@final
class ConvTransposeSite(AnyConvSite[_ConvTransposeNd]):
    """torch.nn.ConvTranspose1d, 2d or 3d, with a weight (in, out / groups, *kernel).

    M is (out / groups * kernel, in): its rows are no outputs, so there is no `apply`.
    """

    def read(self, layer: _ConvTransposeNd) -> Tensor:
        return layer.weight.detach().flatten(1).T

    def to_weight(self, layer: _ConvTransposeNd, M: Tensor) -> Tensor:
        return M.T.reshape(layer.weight.shape)

    def fan_in(self, layer: _ConvTransposeNd) -> int:
        return layer.weight.shape[0] // layer.groups

    def project(self, layer: _ConvTransposeNd, A: Tensor, x: Tensor) -> Tensor:
        rank, groups = A.shape[0], layer.groups
        A_of_groups = A.view(rank, groups, -1)
        A_of_groups = A_of_groups.transpose(0, 1)  # (groups, rank, in / groups)
        kernel = A_of_groups.reshape(groups * rank, -1, *self.ones)
        return self.convolve(x, kernel, groups=groups)

    def expand(self, layer: _ConvTransposeNd, B: Tensor, projected: Tensor, y: Tensor) -> Tensor:
        patch = layer.weight.shape[1:]  # (out / groups, *kernel)
        rank = B.shape[1]
        kernel = B.T.reshape(rank, *patch)
        kernel = kernel.repeat(layer.groups, 1, *self.ones)  # (groups * rank, *patch)
        return CONVOLVE_TRANSPOSED[self.dims](
            projected,
            kernel,
            stride=layer.stride,
            padding=layer.padding,
            output_padding=self._output_padding(layer, projected, y),
            groups=layer.groups,
            dilation=layer.dilation,
        )

    def _output_padding(self, layer: _ConvTransposeNd, projected: Tensor, y: Tensor) -> list[int]:
        """Return the output padding that gives the product the shape of y.

        It is not always the layer's own, because a caller may pass an `output_size`.
        """
        sizes = projected.shape[-self.dims :]
        output_sizes = y.shape[-self.dims :]
        output_padding: list[int] = []
        for axis in range(self.dims):
            steps = sizes[axis] - 1
            kernel_steps = layer.kernel_size[axis] - 1
            span = steps * layer.stride[axis]
            kernel_span = kernel_steps * layer.dilation[axis]
            cut = 2 * int(layer.padding[axis])
            unpadded = span + kernel_span + 1 - cut
            output_padding.append(output_sizes[axis] - unpadded)
        return output_padding

    def rank_faults(self, layer: _ConvTransposeNd, rank: int) -> list[str]:
        inputs, *outputs = layer.weight.shape
        return compare_rank(rank, inputs, prod(outputs), "out x kernel")


CONVOLUTIONS: list[Site] = [
    ConvSite("convolution1d", nn.Conv1d, 1),
    ConvSite("convolution2d", nn.Conv2d, 2),
    ConvSite("convolution3d", nn.Conv3d, 3),
    ConvTransposeSite("transposed1d", nn.ConvTranspose1d, 1),
    ConvTransposeSite("transposed2d", nn.ConvTranspose2d, 2),
    ConvTransposeSite("transposed3d", nn.ConvTranspose3d, 3),
]
