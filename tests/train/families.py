"""Tiny models of the families that `lorakit train` starts on by default, or refuses in time."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.report import RunReport
from lorakit.train.run import train_adapter

from ..conftest import CHAT, make_tokenizer, sentences

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TINY = {**SIZES, "vocab_size": 320, "max_position_embeddings": 64, "pad_token_id": 1}
TEXT = {**TINY, "bos_token_id": 2, "eos_token_id": 3}
GROUPED = {**TEXT, "num_key_value_heads": 2}
WIDE_HEADS = {**GROUPED, "head_dim": 8}
EXPERTS = {**WIDE_HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROUTED = {
    **WIDE_HEADS,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
STATES = {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 16, "chunk_size": 16}
BOTH = {
    "vocab_size": 320,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 2,
}
PICTURE = {**SIZES, "image_size": 16, "patch_size": 8}
QWEN_PICTURE = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 32,
    "patch_size": 8,
}
QWEN_TOKENS = {
    "image_token_id": 300,
    "video_token_id": 301,
    "vision_start_token_id": 302,
    "vision_end_token_id": 303,
}
QWEN_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


@dataclass(frozen=True)
class Family:
    """A family of models, and what a default run does with one of them.

    Attributes:
        kind: the model's class in transformers.
        options: of its config.
        task: whose rows it is trained on: a key of ROWS.
        left_out: names of the modules that all-linear leaves out.
        refused: a part of the error that is raised before weights are read; empty if it trains.
        config: the config's class, where it is not named as the model is.
    """

    kind: str
    options: dict[str, Any]
    task: str = "causal-lm"
    left_out: tuple[str, ...] = ()
    refused: str = ""
    config: str = ""


DECODERS = {
    "llama": Family("LlamaForCausalLM", GROUPED),
    "mistral": Family("MistralForCausalLM", GROUPED),
    "mixtral": Family(
        "MixtralForCausalLM", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "qwen2": Family("Qwen2ForCausalLM", GROUPED),
    "qwen3": Family("Qwen3ForCausalLM", WIDE_HEADS),
    "qwen3_moe": Family("Qwen3MoeForCausalLM", EXPERTS),
    "qwen3_next": Family(
        "Qwen3NextForCausalLM",
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 24,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
        },
        left_out=(
            "model.layers.0.linear_attn.in_proj_ba",
            "model.layers.0.mlp.shared_expert_gate",
            "model.layers.1.mlp.shared_expert_gate",
        ),
    ),
    "gemma2": Family("Gemma2ForCausalLM", WIDE_HEADS),
    "gemma3_text": Family("Gemma3ForCausalLM", WIDE_HEADS, config="Gemma3TextConfig"),
    "phi3": Family("Phi3ForCausalLM", GROUPED),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {
            "vocab_size": 320,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "pad_token_id": 1,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        config="GPT2Config",
    ),
    "gpt_neox": Family("GPTNeoXForCausalLM", TEXT),
    "bloom": Family("BloomForCausalLM", {**TEXT, "n_layer": 2, "n_head": 4}),
    "opt": Family("OPTForCausalLM", {**TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": Family("FalconForCausalLM", TEXT),
    "mamba": Family(
        "MambaForCausalLM",
        {**TEXT, "state_size": 8},
        left_out=("backbone.layers.0.mixer.dt_proj", "backbone.layers.1.mixer.dt_proj"),
    ),
    "mamba2": Family(
        "Mamba2ForCausalLM",
        {**TEXT, "state_size": 16, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    ),
    "jamba": Family(
        "JambaForCausalLM",
        {
            **GROUPED,
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 2,
        },
        left_out=("model.layers.0.mamba.dt_proj",),
    ),
    "nemotron_h": Family(
        "NemotronHForCausalLM",
        {
            **WIDE_HEADS,
            **STATES,
            "layers_block_type": ["mamba", "attention", "mlp", "moe"],
            "num_hidden_layers": 4,
            "n_groups": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24,
        },
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        {
            **ROUTED,
            "num_key_value_heads": 4,
            "q_lora_rank": 24,
            "kv_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    "glm4": Family("Glm4ForCausalLM", WIDE_HEADS),
    "glm4_moe": Family("Glm4MoeForCausalLM", ROUTED),
    "granite": Family("GraniteForCausalLM", GROUPED),
    "olmo2": Family("Olmo2ForCausalLM", GROUPED),
    "smollm3": Family("SmolLM3ForCausalLM", GROUPED),
    "cohere2": Family("Cohere2ForCausalLM", {**GROUPED, "sliding_window": 32}),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        {**WIDE_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32},
    ),
    "lfm2": Family(
        "Lfm2ForCausalLM",
        {**GROUPED, "block_multiple_of": 8, "layer_types": ["conv", "full_attention"]},
    ),
}
ENCODERS = {
    "bert": Family("BertModel", TINY, "classify"),
    "roberta": Family("RobertaModel", {**TINY, "max_position_embeddings": 66}, "classify"),
    "deberta-v2": Family(
        "DebertaV2Model",
        {
            **TINY,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "share_att_key": True,
            "max_relative_positions": 8,
        },
        "classify",
    ),
    "modernbert": Family(
        "ModernBertModel",
        {
            **TEXT,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "global_attn_every_n_layers": 2,
            "local_attention": 16,
        },
        "classify",
    ),
    "distilbert": Family(
        "DistilBertModel",
        {**TINY, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
        "classify",
    ),
    "electra": Family("ElectraModel", {**TINY, "embedding_size": 32}, "classify"),
}
# Trained on text: of these models it reaches the language model.
WITH_PICTURES = {
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {**GROUPED, "rope_parameters": QWEN_ROPE},
            "vision_config": {**QWEN_PICTURE, "fullatt_block_indexes": [1], "window_size": 16},
            **QWEN_TOKENS,
        },
        left_out=("model.visual",),
    ),
    "qwen3_vl": Family(
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {**WIDE_HEADS, "rope_parameters": QWEN_ROPE},
            "vision_config": {
                **QWEN_PICTURE,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            **QWEN_TOKENS,
        },
        left_out=("model.visual",),
    ),
    "gemma3": Family(
        "Gemma3ForConditionalGeneration",
        {
            "text_config": WIDE_HEADS,
            "vision_config": PICTURE,
            "mm_tokens_per_image": 1,
            "image_token_index": 300,
            "boi_token_index": 301,
            "eoi_token_index": 302,
        },
        left_out=("model.vision_tower",),
    ),
    "smolvlm": Family(
        "SmolVLMForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **GROUPED},
            "vision_config": PICTURE,
            "image_token_id": 300,
            "scale_factor": 2,
        },
        left_out=("model.vision_model", "model.connector"),
    ),
    "llava": Family(
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **GROUPED},
            "vision_config": {"model_type": "clip_vision_model", **PICTURE, "projection_dim": 16},
            "image_token_index": 300,
            "image_seq_length": 4,
        },
        left_out=("model.vision_tower", "model.multi_modal_projector"),
    ),
    "paligemma": Family(
        "PaliGemmaForConditionalGeneration",
        {
            "text_config": {"model_type": "gemma", **WIDE_HEADS},
            "vision_config": {
                "model_type": "siglip_vision_model",
                **PICTURE,
                "vision_use_head": False,
            },
            "image_token_index": 300,
            "projection_dim": 32,
        },
        left_out=("model.vision_tower", "model.multi_modal_projector"),
    ),
}
ENCODER_DECODERS = {
    "t5": Family(
        "T5ForConditionalGeneration",
        {
            "vocab_size": 320,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 1,
            "num_heads": 4,
            "decoder_start_token_id": 1,
            "pad_token_id": 1,
            "eos_token_id": 3,
        },
        "seq2seq",
    ),
    "bart": Family(
        "BartForConditionalGeneration",
        {**BOTH, "max_position_embeddings": 64},
        "seq2seq",
    ),
    "mbart": Family(
        "MBartForConditionalGeneration",
        {**BOTH, "max_position_embeddings": 64},
        "seq2seq",
    ),
    "marian": Family(
        "MarianMTModel",
        {**BOTH, "max_position_embeddings": 64},
        "seq2seq",
        config="MarianConfig",
    ),
}
UNSUPPORTED = "which lorakit cannot load for causal-lm"
# Of tasks that text rows are not for.
OTHERS = {
    "whisper": Family(
        "WhisperForConditionalGeneration",
        {**BOTH, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64},
        refused=UNSUPPORTED,
    ),
    "vit": Family("ViTForImageClassification", PICTURE, refused=UNSUPPORTED),
    "clip": Family(
        "CLIPModel",
        {"text_config": {**TEXT, "projection_dim": 16}, "vision_config": PICTURE},
        refused=UNSUPPORTED,
    ),
    "convnext": Family(
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
        refused=UNSUPPORTED,
    ),
}
FAMILIES = {**DECODERS, **ENCODERS, **ENCODER_DECODERS, **WITH_PICTURES, **OTHERS}


def _make_texts() -> list[dict[str, str]]:
    return [{"text": text} for text in sentences(24)]


def _make_labelled_texts() -> list[dict[str, str]]:
    return [{**row, "label": "ab"[i % 2]} for i, row in enumerate(_make_texts())]


def _make_pairs() -> list[dict[str, str]]:
    texts = sentences(48)
    return [
        {"prompt": prompt, "completion": completion}
        for prompt, completion in zip(texts[:24], texts[24:], strict=True)
    ]


ROWS: dict[str, Callable[[], list[dict[str, str]]]] = {
    "causal-lm": _make_texts,
    "classify": _make_labelled_texts,
    "seq2seq": _make_pairs,
}


def write_model(family: Family, folder: Path) -> None:
    """Write a model of this family with random weights, and a tokenizer."""
    name = family.kind.partition("For")[0].removesuffix("Model")
    config = getattr(transformers, family.config or f"{name}Config")(**family.options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, family.kind)(config).save_pretrained(folder)
    if family.task == "classify":
        tokenizer = make_tokenizer(["[UNK]", "[PAD]", "[CLS]", "[SEP]"])
    else:
        tokenizer = make_tokenizer(["<unk>", "<pad>", "<s>", "</s>"], CHAT)
    tokenizer.save_pretrained(folder)


def train_default(
    family: Family, folder: Path, say: Callable[[str], None] = lambda message: None
) -> RunReport:
    """Train an adapter of a new model for two steps with the default spec; return the report.

    Args:
        family: of the model.
        folder: gets the model, its rows, and the adapter in `out`.
        say: called with each message.
    """
    write_model(family, folder / "model")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[family.task]()), "utf-8")
    settings = TrainSpec(
        model=str(folder / "model"),
        data=str(data),
        output=str(folder / "out"),
        steps=2,
        batch_size=8,
        threads=1,
    )
    return train_adapter(settings, Spec(), say)
