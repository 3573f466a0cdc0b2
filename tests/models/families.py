"""Tiny models of many families, from transformers' own classes, with what must hold for each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

IDS = torch.arange(24).reshape(2, 12) * 7 % 46 + 4  # above every special id
CLASSES = torch.tensor([0, 2])
DRAW = torch.Generator().manual_seed(3)
PIXELS, SOUND = torch.randn(2, 3, 16, 16, generator=DRAW), torch.randn(2, 8, 32, generator=DRAW)

# What a model is given: a batch with labels.
WORDS = {"input_ids": IDS, "labels": IDS}
CLASSIFIED = {"input_ids": IDS, "labels": CLASSES}
TRANSLATED = {"input_ids": IDS, "labels": IDS.flip(1)[:, :8].contiguous()}
SEEN = {"pixel_values": PIXELS, "labels": CLASSES}
MATCHED = {"input_ids": IDS, "pixel_values": PIXELS, "return_loss": True}
HEARD = {"input_features": SOUND, "labels": IDS[:, :8].contiguous()}

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**TINY, "num_key_value_heads": 2}
ENCODER = {**TINY, "num_labels": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BOTH = {
    "vocab_size": 50,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "dropout": 0.0,
    "decoder_start_token_id": 2,
    **SPECIAL,
}
PICTURE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


def presets(every: int, blocks: int, mlp: int, attention: int = 0, **more: int) -> dict[str, int]:
    """Return what presets select in a model of so many attention blocks: places, or parts of fused
    ones.
    """
    return {
        "all-linear": every,
        "q": blocks,
        "k": blocks,
        "v": blocks,
        "o": blocks,
        "qv": 2 * blocks,
        "qkv": 3 * blocks,
        "qkvo": 4 * blocks,
        "attention": attention or 4 * blocks,
        "mlp": mlp,
        "none": 0,
        **more,
    }


@dataclass(frozen=True)
class Family:
    """One model of a family: how it is made, what it is given, and what must hold.

    Attributes:
        kind: the model's class in transformers.
        options: of its config.
        inputs: a batch with labels.
        presets: how many places each selects; a preset that is not listed is refused.
        names: last parts of what all-linear adapts.
        rest: kinds of the places that all-linear leaves, with their counts.
        beyond: classes of the modules that no site holds, with their counts.
        silent: places that have no part in the model's forward, as `lorakit.check` reports them.
        peft: whether PEFT's own forward uses all that all-linear adapts.
        config: the config's class, where it is not named as the model is.
    """

    kind: str
    options: dict[str, Any]
    inputs: dict[str, Any]
    presets: dict[str, int]
    names: str
    rest: dict[str, int]
    beyond: dict[str, int] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    peft: bool = True
    config: str = ""

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return the model with the same weights every time, biases filled."""
        config: Callable[..., Any] = getattr(
            transformers, self.config or self.kind.partition("For")[0] + "Config"
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            made = config(**self.options)
            if dtype is torch.float64:
                made._experts_implementation = "eager"  # the grouped one has no float64
            model = getattr(transformers, self.kind)(made).eval()
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or (parameter.ndim > 1 and "norm" not in name.lower()):
                    parameter.data.normal_(std=0.1 if name.endswith("bias") else 0.2)
        return model.to(dtype)

    def given(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        return {
            k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in self.inputs.items()
        }


LLAMA = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
NEOX = "query_key_value dense dense_h_to_4h dense_4h_to_h"
BART = "q_proj k_proj v_proj out_proj fc1 fc2"
FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM", GROUPED, WORDS, presets(14, 2, 6), LLAMA, {"embedding": 1, "linear": 1}
    ),
    "mistral": Family(
        "MistralForCausalLM",
        GROUPED,
        WORDS,
        presets(14, 2, 6),
        LLAMA,
        {"embedding": 1, "linear": 1},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {**GROUPED, "head_dim": 4},
        WORDS,
        presets(14, 2, 6),
        LLAMA,
        {"embedding": 1, "linear": 1},
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        {**GROUPED, "head_dim": 4},
        WORDS,
        presets(14, 2, 6),
        LLAMA,
        {"linear": 1},
        {"GemmaTextScaledWordEmbedding": 1},
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {
            "vocab_size": 50,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            **SPECIAL,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        WORDS,
        presets(8, 2, 4, attention=4),
        "c_attn c_proj c_fc",
        {"embedding": 2, "linear": 1},
        config="GPT2Config",
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        TINY,
        WORDS,
        presets(8, 2, 4, attention=4),
        NEOX,
        {"embedding": 1, "linear": 1},
    ),
    "bloom": Family(
        "BloomForCausalLM",
        {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 4},
        WORDS,
        presets(8, 2, 4, attention=4),
        NEOX,
        {"embedding": 1, "linear": 1},
    ),
    "opt": Family(
        "OPTForCausalLM",
        {**TINY, "ffn_dim": 24, "word_embed_proj_dim": 8, "dropout": 0.0},
        WORDS,
        presets(14, 2, 4),
        f"{BART} project_in project_out",
        {"embedding": 1, "linear": 1},
        {"OPTLearnedPositionalEmbedding": 1},
    ),
    "phi": Family(
        "PhiForCausalLM",
        TINY,
        WORDS,
        presets(12, 2, 4),
        "q_proj k_proj v_proj dense fc1 fc2",
        {"embedding": 1, "linear": 1},
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
        WORDS,
        presets(12, 2, 4),
        "q_proj k_proj v_proj o_proj gate_up_proj down_proj",
        {"embedding": 1, "linear": 1, "parameter": 2},
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        {
            **GROUPED,
            "head_dim": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
        },
        WORDS,
        presets(12, 2, 4),
        "q_proj k_proj v_proj o_proj gate_up_proj down_proj",
        {"embedding": 1, "linear": 1, "parameter": 2},
    ),
    # PEFT's Mamba reads the base's weight of dt_proj past the adapter.
    "mamba": Family(
        "MambaForCausalLM",
        {
            "vocab_size": 50,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "state_size": 4,
            "time_step_rank": 4,
            **SPECIAL,
        },
        WORDS,
        {"all-linear": 8, "conv": 2, "none": 0},
        "in_proj x_proj dt_proj out_proj",
        {"embedding": 1, "linear": 1, "convolution1d": 2},
        {"MambaMixer": 2},
        peft=False,
    ),
    "bert": Family(
        "BertForSequenceClassification",
        ENCODER,
        CLASSIFIED,
        presets(13, 2, 4),
        "query key value dense",
        {"embedding": 3, "linear": 1},
    ),
    "roberta": Family(
        "RobertaForSequenceClassification",
        ENCODER,
        CLASSIFIED,
        presets(12, 2, 4),
        "query key value dense",
        {"embedding": 3, "linear": 2},
    ),
    "deberta": Family(
        "DebertaV2ForSequenceClassification",
        {
            **ENCODER,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "share_att_key": False,
            "max_relative_positions": 8,
            "pooler_dropout": 0.0,
        },
        CLASSIFIED,
        presets(16, 2, 4),
        "query_proj key_proj value_proj pos_key_proj pos_query_proj dense",
        {"embedding": 3, "linear": 2},
        silent=("deberta.encoder.rel_embeddings",),
    ),
    # Here each projection is also called for the relative positions: twice in a forward.
    "deberta, shared": Family(
        "DebertaV2ForSequenceClassification",
        {
            **ENCODER,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "share_att_key": True,
            "max_relative_positions": 8,
            "pooler_dropout": 0.0,
        },
        CLASSIFIED,
        presets(12, 2, 4),
        "query_proj key_proj value_proj dense",
        {"embedding": 3, "linear": 2},
        silent=("deberta.encoder.rel_embeddings",),
    ),
    "distilbert": Family(
        "DistilBertForSequenceClassification",
        {
            "vocab_size": 50,
            "dim": 16,
            "hidden_dim": 24,
            "n_layers": 2,
            "n_heads": 4,
            "num_labels": 3,
            "max_position_embeddings": 64,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "seq_classif_dropout": 0.0,
        },
        CLASSIFIED,
        presets(12, 2, 4),
        "q_lin k_lin v_lin out_lin lin1 lin2",
        {"embedding": 2, "linear": 2},
    ),
    "t5": Family(
        "T5ForConditionalGeneration",
        {
            "vocab_size": 50,
            "d_model": 16,
            "d_kv": 4,
            "d_ff": 24,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
            "dropout_rate": 0.0,
        },
        TRANSLATED,
        presets(32, 6, 8),
        "q k v o wi wo",
        {"embedding": 5, "linear": 1},
        silent=("shared",),
    ),
    "bart": Family(
        "BartForConditionalGeneration",
        {**BOTH, "max_position_embeddings": 64},
        TRANSLATED,
        presets(32, 6, 8),
        BART,
        {"linear": 1},
        {"BartScaledWordEmbedding": 3, "BartLearnedPositionalEmbedding": 2},
    ),
    "vit": Family(
        "ViTForImageClassification",
        {**PICTURE, "num_labels": 3},
        SEEN,
        presets(12, 2, 4, conv=1),
        "q_proj k_proj v_proj o_proj fc1 fc2",
        {"convolution2d": 1, "linear": 1},
        {"ViTEmbeddings": 1},
    ),
    "clip": Family(
        "CLIPModel",
        {
            "projection_dim": 8,
            "text_config": {**TINY, "projection_dim": 8, **SPECIAL},
            "vision_config": {**PICTURE, "projection_dim": 8},
        },
        MATCHED,
        presets(26, 4, 8, conv=1),
        f"{BART} text_projection visual_projection",
        {"embedding": 3, "convolution2d": 1},
        config="CLIPConfig",
    ),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        {**BOTH, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32},
        HEARD,
        presets(32, 6, 8, conv=2),
        BART,
        {"convolution1d": 2, "embedding": 2, "linear": 1},
        {"WhisperPositionalEmbedding": 1},
    ),
}


def logits(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Return what the model says of a batch."""
    with torch.no_grad():
        outputs = model(**inputs)
    return outputs.logits if "logits" in outputs else outputs.logits_per_image
