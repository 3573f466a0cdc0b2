"""Linear and MergedLinear, with factors.

Source: github.com/microsoft/LoRA, loralib 0.1.2, for the names r, lora_alpha and others.
"""

from collections.abc import Iterator, Sequence
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.errors import SpecError
from lorakit.linalg import multiply_wide, wide_dtype
from lorakit.loralib.layer import LoRALayer, LoRAModule


class LinearOptions(TypedDict, total=False):
    """The further keyword arguments of nn.Linear."""

    bias: bool
    device: torch.device | str | int | None
    dtype: torch.dtype | None


def _require_call(layer: nn.Module, args: object) -> None:
    """Do nothing. A linear layer with a hook is called by torch's encoder layer, not only read."""


class Linear(LoRAModule, nn.Linear):
    """`loralib.Linear`; with fan_in_fan_out the weight is stored as (in, out)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: int = 1,
        lora_dropout: float = 0.0,
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        **kwargs: Unpack[LinearOptions],
    ):
        nn.Linear.__init__(self, in_features, out_features, **kwargs)
        LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        self.fan_in_fan_out = fan_in_fan_out
        self.make_linear_factors()
        self.reset_parameters()
        if fan_in_fan_out:
            self.weight.data = self.weight.data.T
        self.register_forward_pre_hook(_require_call)

    def make_linear_factors(self) -> None:
        """Create the factors in the shapes of this layer."""
        if self.r:
            self.make_factors((self.r, self.in_features), (self.out_features, self.r))

    def change(self) -> Tensor:
        product = self.product()
        return product.T if self.fan_in_fan_out else product

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore  (loralib's name of the argument)
        weight = self.used_weight()
        y = F.linear(x, weight.T if self.fan_in_fan_out else weight, self.bias)
        if not self.adds_factors():
            return y
        return y + self.apply_factors(self.lora_dropout(x), y.dtype)

    def apply_factors(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the change of the output, without building the product of the factors."""
        projected = F.linear(x, self.lora_A.to(dtype)) * self.scaling
        return F.linear(projected, self.lora_B.to(dtype))


class MergedLinear(Linear):
    """`loralib.MergedLinear`: equal parts of one matrix, such as q, k and v, some of them adapted.

    enable_lora has one value for each part. lora_A is (r * adapted parts, in) and lora_B (size of
    a part * adapted parts, r), part after part.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: int = 1,
        lora_dropout: float = 0.0,
        enable_lora: Sequence[bool] = (False,),
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        **kwargs: Unpack[LinearOptions],
    ):
        parts = len(enable_lora)
        if not parts or out_features % parts:
            raise SpecError(
                f"enable_lora: {parts} parts do not divide out_features, {out_features}."
            )
        self.enable_lora = list(enable_lora)
        super().__init__(
            in_features,
            out_features,
            r,
            lora_alpha,
            lora_dropout,
            fan_in_fan_out,
            merge_weights,
            **kwargs,
        )

    @property
    def part_size(self) -> int:
        """The number of outputs of each part."""
        return self.out_features // len(self.enable_lora)

    def make_linear_factors(self) -> None:
        adapted = sum(self.enable_lora)
        if self.r and adapted:
            A_shape = (self.r * adapted, self.in_features)
            self.make_factors(A_shape, (self.part_size * adapted, self.r))

    def parts(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (first output, A, B) of each adapted part."""
        indices = [i for i, enabled in enumerate(self.enable_lora) if enabled]
        A_parts = self.lora_A.chunk(len(indices))
        B_parts = self.lora_B.chunk(len(indices))
        for i, A, B in zip(indices, A_parts, B_parts, strict=True):
            yield i * self.part_size, A, B

    def change(self) -> Tensor:
        size = (self.out_features, self.in_features)
        full = torch.zeros(size, dtype=wide_dtype(self.lora_A), device=self.weight.device)
        for first, A, B in self.parts():
            product = multiply_wide(B.detach(), A.detach())
            full[first : first + len(B)] = self.scaling * product
        return full.T if self.fan_in_fan_out else full

    def apply_factors(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        projected = F.linear(x, self.lora_A.to(dtype)) * self.scaling
        zeros_size = (*projected.shape[:-1], self.part_size)
        by_part = iter(projected.split(self.r, dim=-1))
        parts = self.parts()
        outputs: list[Tensor] = []
        for enabled in self.enable_lora:
            if enabled:
                _, _, B = next(parts)
                outputs.append(F.linear(next(by_part), B.to(dtype)))
            else:
                outputs.append(projected.new_zeros(zeros_size))
        return torch.cat(outputs, dim=-1)
