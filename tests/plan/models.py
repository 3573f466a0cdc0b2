"""Small models of different shape, as skeletons and with weights."""

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from lorakit.plan.meta_model import MetaModel

CONFIGS = {
    "llama": lambda: LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    ),
    "deep and narrow": lambda: Qwen3Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=10,
        head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
    ),
    "large vocabulary": lambda: GPT2Config(
        vocab_size=20000, n_embd=96, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    ),
    "encoder": lambda: BertConfig(
        vocab_size=800,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
    ),
    "opt": lambda: OPTConfig(
        vocab_size=1000,
        hidden_size=160,
        ffn_dim=640,
        num_hidden_layers=3,
        num_attention_heads=4,
        word_embed_proj_dim=160,
    ),
}


def build(config: PreTrainedConfig, task: str) -> nn.Module:
    """Return a model with random weights, on the device that is the default."""
    auto = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    return auto.from_config(config, dtype=torch.float32)


def bare(name: str, task: str) -> MetaModel:
    """Return the same model without its weights; a classifier's head counts as new."""
    with torch.device("meta"):
        model = build(CONFIGS[name](), task)
    return MetaModel(model, name, task, ("classifier",) if task == "classify" else (), 512)
