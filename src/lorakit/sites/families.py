"""Layouts of fused layers by model family, each tested against the family's own code.

The family is the `model_type` of the nearest config of transformers above the layer.
"""

import re
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

from lorakit.sites.fused_parts import Layout, make_qkv_layout


class FamilyConfig(Protocol):
    """The sizes in a config of transformers that the layouts depend on."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    num_kv_heads: int
    multi_query: bool
    new_decoder_architecture: bool


class FusedLayer(NamedTuple):
    """A fused layer of some model families.

    Attributes:
        families: `model_type` of each.
        name: pattern of the layer's own name.
        make_layout: function of the config and the number of outputs.
    """

    families: tuple[str, ...]
    name: str
    make_layout: Callable[[FamilyConfig, int], Layout]


def find_layout(name: str, outputs: int, config: object) -> Layout | None:
    """Return the layout of a fused layer; None for a layer with a single projection.

    Args:
        name: full name of the layer.
        outputs: number of outputs of its matrix.
        config: transformers' config of the model; None for other models.
    """
    family = getattr(config, "model_type", "")
    own_name = name.rpartition(".")[2]
    for layer in FUSED_LAYERS:
        if family in layer.families and re.fullmatch(layer.name, own_name):
            return layer.make_layout(cast(FamilyConfig, config), outputs)
    return None


def _make_contiguous(config: FamilyConfig, outputs: int) -> Layout:
    """All of q, all of k, all of v."""
    return make_qkv_layout(outputs)


def _make_interleaved(config: FamilyConfig, outputs: int) -> Layout:
    """q, k and v of one head after those of another."""
    return make_qkv_layout(outputs, config.num_attention_heads)


def _make_attention(config: FamilyConfig, outputs: int) -> Layout:
    """q, k and v; in a layer of cross-attention, k and v alone."""
    if outputs == 2 * config.hidden_size:
        return Layout({"k": config.hidden_size, "v": config.hidden_size})
    return make_qkv_layout(outputs)


def _make_grouped_query(config: FamilyConfig, outputs: int) -> Layout:
    """q, then k and v with fewer heads."""
    head = outputs // (config.num_attention_heads + 2 * config.num_key_value_heads)
    queries = head * config.num_attention_heads
    keys = head * config.num_key_value_heads
    return Layout({"q": queries, "k": keys, "v": keys})


def _make_bigcode(config: FamilyConfig, outputs: int) -> Layout:
    return (
        _make_grouped_query(config, outputs)
        if config.multi_query
        else _make_interleaved(config, outputs)
    )


def _make_falcon(config: FamilyConfig, outputs: int) -> Layout:
    if not config.new_decoder_architecture and not config.multi_query:
        return _make_interleaved(config, outputs)
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    head = config.hidden_size // config.num_attention_heads
    queries = config.hidden_size // groups
    return Layout({"q": queries, "k": head, "v": head}, groups)


def _make_codegen(config: FamilyConfig, outputs: int) -> Layout:
    # Four blocks, because it was first trained on four cores; in each, v comes before k.
    size = outputs // 12
    return Layout({"q": size, "v": size, "k": size}, groups=4)


def _make_gated(config: FamilyConfig, outputs: int) -> Layout:
    return Layout({"gate": outputs // 2, "up": outputs // 2})


FUSED_LAYERS = [
    FusedLayer(
        ("gpt2", "decision_transformer", "imagegpt", "openai-gpt"), "c_attn", _make_attention
    ),
    FusedLayer(("gpt_bigcode",), "c_attn", _make_bigcode),
    FusedLayer(
        ("bloom", "gpt_neox", "gpt_neox_japanese", "persimmon"),
        "query_key_value",
        _make_interleaved,
    ),
    FusedLayer(("falcon",), "query_key_value", _make_falcon),
    FusedLayer(("mpt", "modernbert"), "Wqkv", _make_contiguous),
    FusedLayer(("dbrx",), "Wqkv", _make_grouped_query),
    FusedLayer(("codegen",), "qkv_proj", _make_codegen),
    FusedLayer(("phi3", "phi4_multimodal"), "qkv_proj", _make_grouped_query),
    FusedLayer(("deberta",), "in_proj", _make_interleaved),
    FusedLayer(("semantic", "coarse_acoustics", "fine_acoustics"), "att_proj", _make_contiguous),
    FusedLayer(
        (
            "blip_vision_model",
            "blip_2_vision_model",
            "instructblip_vision_model",
            "sam_vision_model",
            "sam_hq_vision_model",
            "got_ocr2_vision",
            "vitdet",
            "timesformer",
            "instructblipvideo_vision_model",
            "sam2_hiera_det_model",
            "seggpt",
            "mgp-str",
            "hiera",
            "qwen2_vl_vision",
            "qwen2_5_vl_vision",
            "qwen3_vl_vision",
            "glm4v_vision",
        ),
        "qkv",
        _make_contiguous,
    ),
    FusedLayer(
        (
            "phi3",
            "phi4_multimodal",
            "glm",
            "glm4",
            "glm4v_text",
            "dia_encoder",
            "dia_decoder",
            "zamba2",
        ),
        "gate_up_proj",
        _make_gated,
    ),
    FusedLayer(("modernbert", "modernbert-decoder"), "Wi", _make_gated),
]
