"""Which rows of a fused layer are which projection, by model family: each row of FUSED is held
against the family's own code.

The family is the `model_type` of the nearest config above the layer, as transformers has it.
"""

import re
from typing import Any

from lorakit.sites.fused_parts import Layout, make_qkv_layout


def find_layout(name: str, outputs: int, config: Any) -> Layout | None:
    """Return which rows of a layer are which projection, told by the model family; None for a layer
    that is one.

    Args:
        name: the layer's full name.
        outputs: rows of its matrix.
        config: of the model, as transformers has it; None elsewhere.
    """
    family, last = getattr(config, "model_type", ""), name.rpartition(".")[2]
    return next(
        (
            make(config, outputs)
            for families, names, make in FUSED_LAYERS
            if family in families and re.fullmatch(names, last)
        ),
        None,
    )


def _contiguous(config: Any, outputs: int) -> Layout:
    return make_qkv_layout(outputs)


def _heads(config: Any, outputs: int) -> Layout:
    return make_qkv_layout(outputs, config.num_attention_heads)


def _crossed(config: Any, outputs: int) -> Layout:
    """All of q, k, v; in a layer that looks at another model's output, k and v alone."""
    if outputs == 2 * config.hidden_size:
        return Layout({"k": config.hidden_size, "v": config.hidden_size})
    return make_qkv_layout(outputs)


def _grouped(config: Any, outputs: int) -> Layout:
    """All of q, then the fewer heads of k and v."""
    head = outputs // (config.num_attention_heads + 2 * config.num_key_value_heads)
    few = head * config.num_key_value_heads
    return Layout({"q": head * config.num_attention_heads, "k": few, "v": few})


def _bigcode(config: Any, outputs: int) -> Layout:
    return _grouped(config, outputs) if config.multi_query else _heads(config, outputs)


def _falcon(config: Any, outputs: int) -> Layout:
    if not config.new_decoder_architecture and not config.multi_query:
        return _heads(config, outputs)
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    head = config.hidden_size // config.num_attention_heads
    return Layout({"q": config.hidden_size // groups, "k": head, "v": head}, groups)


def _codegen(config: Any, outputs: int) -> Layout:
    size = (
        outputs // 12
    )  # four blocks, as its first training was spread over four cores; in each v before k
    return Layout({"q": size, "v": size, "k": size}, groups=4)


def _gated(config: Any, outputs: int) -> Layout:
    return Layout({"gate": outputs // 2, "up": outputs // 2})


# Families, the layer's own name, and what makes the layout of its rows.
FUSED_LAYERS: list[tuple[tuple[str, ...], str, Any]] = [
    (("gpt2", "decision_transformer", "imagegpt", "openai-gpt"), "c_attn", _crossed),
    (("gpt_bigcode",), "c_attn", _bigcode),
    (("bloom", "gpt_neox", "gpt_neox_japanese", "persimmon"), "query_key_value", _heads),
    (("falcon",), "query_key_value", _falcon),
    (("mpt", "modernbert"), "Wqkv", _contiguous),
    (("dbrx",), "Wqkv", _grouped),
    (("codegen",), "qkv_proj", _codegen),
    (("phi3", "phi4_multimodal"), "qkv_proj", _grouped),
    (("deberta",), "in_proj", _heads),
    (("semantic", "coarse_acoustics", "fine_acoustics"), "att_proj", _contiguous),
    (
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
        _contiguous,
    ),
    (
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
        _gated,
    ),
    (("modernbert", "modernbert-decoder"), "Wi", _gated),
]
