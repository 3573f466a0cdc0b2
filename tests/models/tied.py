"""Tiny models whose head is their input embedding, by family: what makes them, and the names of
both.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
IDS = torch.arange(12).view(2, 6) + 3
FAMILIES: dict[str, tuple[Callable[[], Any], str, str]] = {
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2)),
        "wte",
        "lm_head",
    ),
    "llama": (
        lambda: LlamaForCausalLM(
            LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
        ),
        "embed_tokens",
        "lm_head",
    ),
    "opt": (
        lambda: OPTForCausalLM(
            OPTConfig(
                vocab_size=40,
                hidden_size=16,
                ffn_dim=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=32,
                word_embed_proj_dim=16,
            )
        ),
        "embed_tokens",
        "lm_head",
    ),
    "bert": (lambda: BertForMaskedLM(BertConfig(**SIZES)), "word_embeddings", "decoder"),
    "t5": (
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        ),
        "embed_tokens",
        "lm_head",
    ),
}


def tied_model(family: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FAMILIES[family][0]().eval()


def logits(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": IDS} if isinstance(model, T5ForConditionalGeneration) else {}
    with torch.no_grad():
        return model(input_ids=IDS, **more).logits
