"""Embedding, with factors.

Source: github.com/microsoft/LoRA, loralib 0.1.2, for the names r, lora_alpha and others.
"""

from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.loralib.layer import LoRALayer, LoRAModule


class EmbeddingOptions(TypedDict, total=False):
    """The further keyword arguments of nn.Embedding."""

    padding_idx: int | None
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool
    sparse: bool
    _weight: Tensor | None
    _freeze: bool
    device: torch.device | str | int | None
    dtype: torch.dtype | None


class Embedding(LoRAModule, nn.Embedding):
    """`loralib.Embedding`, with lora_A (r, num_embeddings) and lora_B (embedding_dim, r).

    lora_A starts at zero, lora_B is normal.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        r: int = 0,
        lora_alpha: int = 1,
        merge_weights: bool = True,
        **kwargs: Unpack[EmbeddingOptions],
    ):
        nn.Embedding.__init__(self, num_embeddings, embedding_dim, **kwargs)
        LoRALayer.__init__(self, r, lora_alpha, 0.0, merge_weights)
        if r:
            self.make_factors((r, num_embeddings), (embedding_dim, r))
        self.reset_parameters()

    def reset_lora(self) -> None:
        nn.init.zeros_(self.lora_A)
        nn.init.normal_(self.lora_B)

    def can_merge(self) -> bool:
        # max_norm rescales the rows that are read, which must be the base's.
        return self.has_factors() and self.max_norm is None

    def change(self) -> Tensor:
        change = self.product().T
        if self.padding_idx is not None:
            change = change.clone()
            change[self.padding_idx] = 0
        return change

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore  (loralib's name of the argument)
        by_frequency = self.scale_grad_by_freq
        y = F.embedding(
            x,
            self.used_weight(),
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            by_frequency,
            self.sparse,
        )
        if not self.adds_factors():
            return y
        columns = F.embedding(x, self.lora_A.T.to(y.dtype), scale_grad_by_freq=by_frequency)
        if self.padding_idx is not None:
            columns = columns * (x != self.padding_idx).unsqueeze(-1)
        return y + F.linear(columns * self.scaling, self.lora_B.to(y.dtype))
