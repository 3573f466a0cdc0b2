"""Conv1d, Conv2d and Conv3d, with factors.

Source: github.com/microsoft/LoRA, loralib 0.1.2, for the names r, lora_alpha and others.
"""

import math
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from lorakit.loralib.layer import LoRALayer, LoRAModule


class ConvOptions(TypedDict, total=False):
    """The further keyword arguments of nn.Conv1d, nn.Conv2d and nn.Conv3d."""

    stride: Any
    padding: Any
    dilation: Any
    groups: int
    bias: bool
    padding_mode: Any
    device: torch.device | str | int | None
    dtype: torch.dtype | None


class ConvLoRA(LoRAModule):
    """loralib's convolution: lora_B @ lora_A viewed as the kernel, so its rank is up to r * kernel.

    Any dimension and kernel works.

    Attributes:
        torch_class: the plain convolution of torch.
    """

    torch_class: Any
    kernel_size: tuple[int, ...]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        r: int = 0,
        lora_alpha: int = 1,
        lora_dropout: float = 0.0,
        merge_weights: bool = True,
        **kwargs: Unpack[ConvOptions],
    ):
        self.torch_class.__init__(self, in_channels, out_channels, kernel_size, **kwargs)
        LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        if r:
            first, last = self.kernel_size[0], self.kernel_size[-1]
            outputs, group_inputs = self.weight.shape[:2]
            groups = getattr(self, "groups", 1)
            B_rows = outputs // groups * math.prod(self.kernel_size) // last
            A_shape = (r * first, group_inputs * groups * last)
            self.make_factors(A_shape, (B_rows, r * first))
        self.reset_parameters()

    @property
    def conv(self) -> "ConvLoRA":
        """The layer itself; in loralib 0.1.2 the convolution is a child of the layer."""
        return self

    def change(self) -> Tensor:
        return self.product().view(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        convolve: Any = self._conv_forward
        y = convolve(x, self.used_weight(), self.bias)
        if not self.adds_factors():
            return y
        kernel = (self.scaling * (self.lora_B @ self.lora_A)).view(self.weight.shape).to(y.dtype)
        return y + convolve(self.lora_dropout(x), kernel, None)


class Conv1d(ConvLoRA, nn.Conv1d):  # pyright: ignore  (loralib's name of the argument)
    """`loralib.Conv1d`: nn.Conv1d with lora_A and lora_B; see ConvLoRA."""

    torch_class = nn.Conv1d


class Conv2d(ConvLoRA, nn.Conv2d):  # pyright: ignore  (loralib's name of the argument)
    """`loralib.Conv2d`: nn.Conv2d with lora_A and lora_B; see ConvLoRA."""

    torch_class = nn.Conv2d


class Conv3d(ConvLoRA, nn.Conv3d):  # pyright: ignore  (loralib's name of the argument)
    """`loralib.Conv3d`: nn.Conv3d with lora_A and lora_B; see ConvLoRA."""

    torch_class = nn.Conv3d
