"""Tiny bases of many classes, as folders, and an adapter of each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
BART = {
    "vocab_size": 50,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
WHISPER = {**BART, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32}
TEXT = {
    **SMALL,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
PICTURES = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 16,
    "num_position_embeddings": 16,
}
EXPERTS = {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Base:
    """A base, and an adapter of it.

    Attributes:
        kind: class of the base.
        config: class of its config.
        options: of the config.
        adapter: class that the adapter is trained with, its targets, and PEFT's type of the task.
        changed: number of stored tensors that the adapter changes.
    """

    kind: str
    config: str
    options: dict[str, Any]
    adapter: tuple[str, list[str], str | None]
    changed: int


BOTH = {"text_config": TEXT, "vision_config": PICTURES}
OWN = "Qwen3_5ForConditionalGeneration"
BASES = {
    "text and pictures": Base(
        OWN, "Qwen3_5Config", BOTH, ("AutoModelForCausalLM", ["o_proj"], "CAUSAL_LM"), 1
    ),
    "its own class": Base(OWN, "Qwen3_5Config", BOTH, (OWN, ["o_proj"], "CAUSAL_LM"), 1),
    "experts": Base(
        "MixtralForCausalLM",
        "MixtralConfig",
        EXPERTS,
        ("MixtralForCausalLM", ["down_proj"], "CAUSAL_LM"),
        8,
    ),
    "t5": Base(
        "T5ForConditionalGeneration",
        "T5Config",
        {**T5, "decoder_start_token_id": 0},
        ("T5ForConditionalGeneration", ["q"], "SEQ_2_SEQ_LM"),
        6,
    ),
    "bart": Base(
        "BartForConditionalGeneration",
        "BartConfig",
        BART,
        ("BartForConditionalGeneration", ["q_proj"], None),
        3,
    ),
    "whisper": Base(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        WHISPER,
        ("WhisperForConditionalGeneration", ["q_proj"], None),
        3,
    ),
    "words": Base(
        "BertForTokenClassification",
        "BertConfig",
        {**SMALL, "num_labels": 5},
        ("BertForTokenClassification", ["query"], "TOKEN_CLS"),
        2,
    ),
    "answers": Base(
        "BertForQuestionAnswering",
        "BertConfig",
        SMALL,
        ("BertForQuestionAnswering", ["query"], "QUESTION_ANS"),
        2,
    ),
    "masked": Base("BertForMaskedLM", "BertConfig", SMALL, ("BertForMaskedLM", ["query"], None), 2),
    "features": Base(
        "BertForMaskedLM", "BertConfig", SMALL, ("BertModel", ["query"], "FEATURE_EXTRACTION"), 2
    ),
    "pictures": Base(
        "ViTForImageClassification",
        "ViTConfig",
        {**SMALL, "image_size": 16, "patch_size": 8, "num_labels": 3},
        ("ViTForImageClassification", ["q_proj"], None),
        2,
    ),
}


def build_base(name: str, folder: Path) -> Path:
    """Write a base with random weights, and return its folder."""
    base = BASES[name]
    options = {key: value for key, value in base.options.items() if key != "vocab_size"}
    if "Vi" not in base.kind:
        options = base.options
    config = getattr(transformers, base.config)(**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, base.kind)(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.1)
        model.save_pretrained(folder)
    return folder
