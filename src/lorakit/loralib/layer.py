"""The common part of all layers: factors, the merged weight, and when it is used.

Source: github.com/microsoft/LoRA, loralib 0.1.2, for the names r, lora_alpha and others.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from lorakit.errors import SpecError
from lorakit.linalg import multiply_wide
from lorakit.spec import is_whole

# Names of loralib 0.1.2, whose convolutions hold torch's layer as a child.
CONVOLUTION_KEYS = {"conv.weight": "weight", "conv.bias": "bias"}


class MergedSum(NamedTuple):
    """The sum of a weight and its change, and the tensors and versions that it was made from."""

    parts: tuple[Tensor, ...]
    versions: tuple[int, ...]
    weight: Tensor

    def is_of(self, parts: tuple[Tensor, ...], versions: tuple[int, ...]) -> bool:
        """Return True if these are the same tensors, unchanged since."""
        return versions == self.versions and all(map(operator.is_, parts, self.parts))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class LoRALayer:
    """The common attributes of all layers: r, lora_alpha, scaling, merged, lora_A, lora_B, …

    A layer is merged in eval mode, unless merge_weights is False; with r = 0 it is the plain layer.
    A change of the weight or a factor while merged (a load, a cast, an optimizer step, a new
    parameter) is used at the next call. PyTorch does not record writes through `.data`: call
    `eval()` again after them. As in loralib, factors get gradients in train mode, or without
    merge_weights.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    weight: Any
    training: bool
    _parameters: Any
    _sum: MergedSum | None = None

    def __init__(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool):
        if not is_whole(r, least=0):
            raise SpecError(f"r: a whole number of at least 0 is needed, got {r!r}.")
        self.r = r
        self.lora_alpha = lora_alpha
        self.merge_weights = merge_weights
        self.lora_dropout = nn.Dropout(lora_dropout)
        self.scaling = lora_alpha / r if r else 0.0
        self.merged = False

    def make_factors(self, A_shape: Sequence[int], B_shape: Sequence[int]) -> None:
        """Create lora_A and lora_B, and freeze the base's weight."""
        self.lora_A = nn.Parameter(self.weight.new_zeros(tuple(A_shape)))
        self.lora_B = nn.Parameter(self.weight.new_zeros(tuple(B_shape)))
        self.weight.requires_grad_(False)

    def reset_lora(self) -> None:
        """Set the initial values: A as a linear layer's weight, B zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def change(self) -> Tensor:
        """Return the change of the weight, in its layout, float32 or better."""
        raise NotImplementedError

    def product(self) -> Tensor:
        """Return scaling * lora_B @ lora_A, in float32 or better."""
        return self.scaling * multiply_wide(self.lora_B.detach(), self.lora_A.detach())

    def has_factors(self) -> bool:
        """Return True if the layer has lora_A and lora_B."""
        # By attribute: a replica of nn.DataParallel has tensors in place of its parameters.
        return getattr(self, "lora_A", None) is not None

    def can_merge(self) -> bool:
        """Return True if the layer can use a merged weight."""
        return self.has_factors()

    def merged_weight(self) -> Tensor:
        """Return the weight plus its change, summed in float32 or better and rounded once.

        It is computed again only if the weight or a factor has changed.
        """
        if not self.has_factors():
            return self.weight.detach()
        parts = (self.weight, self.lora_A, self.lora_B)
        versions = (_version(self.weight), _version(self.lora_A), _version(self.lora_B))
        if self._sum is None or not self._sum.is_of(parts, versions):
            self._sum = MergedSum(parts, versions, self._add_change())
        return self._sum.weight

    def _add_change(self) -> Tensor:
        # The sum may be used after the end of an inference mode.
        with torch.inference_mode(False), torch.no_grad():
            change = self.change()
            return (self.weight.to(change.dtype) + change).to(self.weight.dtype)

    def adds_factors(self) -> bool:
        """Return True if the forward pass applies the factors, and not the merged weight.

        A compiled forward always does: it could not detect a change of the weight or a factor.
        """
        return self.has_factors() and not (self.merged and not torch.compiler.is_compiling())

    def used_weight(self) -> Tensor:
        """Return the weight that the forward pass uses."""
        if self.adds_factors() or not self.has_factors():
            return self.weight
        return self.merged_weight()


class LoRAModule(LoRALayer, nn.Module):
    """A LoRALayer whose merge follows its mode, its dtype, its copies and its state dict."""

    def reset_parameters(self) -> None:
        super().reset_parameters()  # pyright: ignore  (of the plain layer)
        if self.has_factors():
            self.reset_lora()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._sum = None
        self.merged = not mode and self.merge_weights and self.can_merge()
        if self.merged:
            self.merged_weight()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._sum = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_sum": None}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for old, new in CONVOLUTION_KEYS.items():
            if prefix + old in state_dict:
                tensor = state_dict.pop(prefix + old)
                state_dict.setdefault(prefix + new, tensor)
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )

    def extra_repr(self) -> str:
        lora = f"r={self.r}, lora_alpha={self.lora_alpha}, merged={self.merged}"
        return f"{super().extra_repr()}, {lora}"
