"""Tiny models of experts, one a form: which products their modules make of a stack, and which way
round it lies.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    JetMoeConfig,
    JetMoeForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_local_experts": 4,
}
HEADS: dict[str, Any] = {**SIZES, "num_attention_heads": 4, "head_dim": 8}
FAMILIES: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**HEADS)),
    "qwen3-moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**HEADS, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2)
    ),
    "gpt-oss": lambda: GptOssForCausalLM(GptOssConfig(**HEADS, num_experts_per_tok=2)),
    "llama4": lambda: Llama4ForCausalLM(
        Llama4TextConfig(**HEADS, intermediate_size_mlp=48, pad_token_id=0)
    ),
    "jetmoe": lambda: JetMoeForCausalLM(JetMoeConfig(**SIZES, kv_channels=8)),
}
FORMS = [
    (family, way)
    for family in ("mixtral", "qwen3-moe", "gpt-oss")
    for way in ("eager", "batched_mm", "grouped_mm")
]
FORMS += [("llama4", ""), ("jetmoe", "")]
IDS = torch.arange(18).view(2, 9) % 64


def experts_model(family: str, way: str = "") -> Any:
    """Return a model in eval mode whose every parameter is filled; in float64 where its products
    allow it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FAMILIES[family]().eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    if way or family not in ("llama4", "jetmoe"):
        model.set_experts_implementation(way or "eager")
    return model if way == "grouped_mm" else model.double()


def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits.double()
