"""Tiny models of the families that fuse projections, and what each output of a fused layer does,
found by moving it.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import transformers
from torch import Tensor, nn

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "vocab_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SEEN: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}
GRID: dict[str, Any] = {
    "depth": 1,
    "num_heads": 4,
    "patch_size": 2,
    "spatial_merge_size": 2,
    "temporal_patch_size": 1,
}


def tokens(model: nn.Module) -> None:
    model(input_ids=torch.tensor([[5, 9, 7, 3, 8]]))


def crossed(model: nn.Module) -> None:
    states = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model(input_ids=torch.tensor([[5, 9, 7]]), encoder_hidden_states=states)


def embedded(model: nn.Module) -> None:
    model(
        inputs_embeds=torch.randn(
            1, 5, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64
        )
    )


def both(model: nn.Module) -> None:
    model(
        input_ids=torch.tensor([[5, 9, 7, 3, 8]]), decoder_input_ids=torch.arange(10).view(1, 5, 2)
    )


def picture(model: nn.Module) -> None:
    model(pixel_values=pixels(1, 3, 8, 8))


def large(model: nn.Module) -> None:
    model(pixel_values=pixels(1, 3, 32, 32))


def film(model: nn.Module) -> None:
    model(pixel_values=pixels(1, 2, 3, 8, 8))


def grid(model: nn.Module) -> None:
    model(hidden_states=pixels(16, 12), grid_thw=torch.tensor([[1, 4, 4]]))


def pair(model: nn.Module) -> None:
    model(
        pixel_values=pixels(1, 3, 8, 8),
        prompt_pixel_values=pixels(1, 3, 8, 8),
        prompt_masks=pixels(1, 3, 8, 8),
    )


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# name -> class of transformers, its config, what runs it
FUSED: dict[str, tuple[str, dict[str, Any], Callable[[nn.Module], None]]] = {
    "gpt2": ("GPT2", SMALL, tokens),
    "gpt2-crossed": ("GPT2", {**SMALL, "add_cross_attention": True}, crossed),
    "decision_transformer": ("DecisionTransformer", SMALL, embedded),
    "imagegpt": ("ImageGPT", SMALL, tokens),
    "openai-gpt": ("OpenAIGPT", SMALL, tokens),
    "gpt_bigcode": ("GPTBigCode", {**SMALL, "multi_query": True}, tokens),
    "gpt_bigcode-heads": ("GPTBigCode", {**SMALL, "multi_query": False}, tokens),
    "bloom": ("Bloom", {**SMALL, "n_layer": 1, "n_head": 4}, tokens),
    "gpt_neox": ("GPTNeoX", SMALL, tokens),
    "gpt_neox_japanese": ("GPTNeoXJapanese", SMALL, tokens),
    "persimmon": ("Persimmon", SMALL, tokens),
    "falcon-one": ("Falcon", {**SMALL, "multi_query": True}, tokens),
    "falcon-new": (
        "Falcon",
        {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2},
        tokens,
    ),
    "falcon-heads": ("Falcon", {**SMALL, "multi_query": False}, tokens),
    "mpt": (
        "Mpt",
        {"d_model": 16, "n_heads": 4, "n_layers": 1, "vocab_size": 40, "expansion_ratio": 2},
        tokens,
    ),
    "dbrx": (
        "Dbrx",
        {
            "d_model": 16,
            "n_heads": 4,
            "n_layers": 1,
            "vocab_size": 40,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 1e3, "rope_theta": 1e4},
            "ffn_config": {
                "ffn_hidden_size": 8,
                "hidden_size": 16,
                "moe_num_experts": 2,
                "moe_top_k": 1,
            },
        },
        tokens,
    ),
    "codegen": (
        "CodeGen",
        {**SMALL, "n_layer": 1, "n_head": 4, "n_embd": 16, "rotary_dim": 4},
        tokens,
    ),
    "phi3": ("Phi3", {**SMALL, "num_key_value_heads": 2}, tokens),
    "phi4_multimodal": (
        "Phi4Multimodal",
        {
            **SMALL,
            "num_key_value_heads": 2,
            "vision_config": {**SEEN, "image_size": 28, "patch_size": 14},
            "audio_config": {
                **SMALL,
                "num_blocks": 1,
                "ext_pw_out_channel": 16,
                "nemo_conv_channels": 16,
            },
        },
        tokens,
    ),
    "modernbert": (
        "ModernBert",
        {**SMALL, "global_attn_every_n_layers": 1, "sep_token_id": 3, "cls_token_id": 4},
        tokens,
    ),
    "modernbert-decoder": (
        "ModernBertDecoder",
        {**SMALL, "sep_token_id": 3, "cls_token_id": 4},
        tokens,
    ),
    "deberta": (
        "Deberta",
        {**SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        tokens,
    ),
    "bark": (
        "BarkSemantic",
        {**SMALL, "input_vocab_size": 40, "output_vocab_size": 40, "num_heads": 4, "num_layers": 1},
        tokens,
    ),
    "glm": ("Glm", {**SMALL, "head_dim": 4, "num_key_value_heads": 2}, tokens),
    "glm4": ("Glm4", {**SMALL, "head_dim": 4, "num_key_value_heads": 2}, tokens),
    "zamba2": (
        "Zamba2",
        {
            **SMALL,
            "num_hidden_layers": 2,
            "layers_block_type": ["mamba", "hybrid"],
            "mamba_d_state": 4,
            "n_mamba_heads": 2,
            "num_mem_blocks": 1,
            "use_shared_mlp_adapter": False,
            "mamba_ngroups": 1,
        },
        tokens,
    ),
    "dia": (
        "Dia",
        {
            "encoder_config": {**SMALL, "num_key_value_heads": 4, "head_dim": 4},
            "decoder_config": {
                **SMALL,
                "num_key_value_heads": 4,
                "head_dim": 4,
                "cross_num_attention_heads": 4,
                "cross_head_dim": 4,
                "cross_num_key_value_heads": 4,
                "cross_hidden_size": 16,
                "num_channels": 2,
            },
            "delay_pattern": [0, 1],
        },
        both,
    ),
    "blip": ("BlipVision", SEEN, picture),
    "blip_2": ("Blip2Vision", SEEN, picture),
    "instructblip": ("InstructBlipVision", SEEN, picture),
    "sam": (
        "SamVision",
        {**SEEN, "output_channels": 4, "global_attn_indexes": [0], "mlp_dim": 24},
        picture,
    ),
    "sam_hq": (
        "SamHQVision",
        {**SEEN, "output_channels": 4, "global_attn_indexes": [0], "mlp_dim": 24},
        picture,
    ),
    "vitdet": ("VitDet", {**SEEN, "pretrain_image_size": 8}, picture),
    "timesformer": ("Timesformer", {**SEEN, "num_frames": 2}, film),
    "seggpt": (
        "SegGpt",
        {
            **SEEN,
            "image_size": [16, 8],
            "pretrain_image_size": 8,
            "merge_index": 0,
            "decoder_hidden_size": 4,
            "intermediate_hidden_state_indices": [0],
        },
        pair,
    ),
    "instructblipvideo": ("InstructBlipVideoVision", SEEN, picture),
    "got_ocr2": (
        "GotOcr2Vision",
        {**SEEN, "output_channels": 4, "global_attn_indexes": [0], "mlp_dim": 24},
        picture,
    ),
    "mgp-str": (
        "Mgpstr",
        {
            **SEEN,
            "image_size": [8, 8],
            "num_character_labels": 4,
            "max_token_length": 5,
            "num_bpe_labels": 4,
            "num_wordpiece_labels": 4,
        },
        picture,
    ),
    "hiera": (
        "Hiera",
        {
            "embed_dim": 8,
            "image_size": [32, 32],
            "depths": [1],
            "num_heads": [2],
            "query_stride": [2, 2],
            "num_query_pool": 0,
            "masked_unit_size": [8, 8],
            "masked_unit_attention": [False],
        },
        large,
    ),
    "glm4v": (
        "Glm4vVision",
        {
            **GRID,
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 16,
            "image_size": 8,
        },
        grid,
    ),
    "glm4v_text": (
        "Glm4vText",
        {
            **SMALL,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [1, 1, 0],
            },
            "head_dim": 4,
            "num_key_value_heads": 2,
        },
        tokens,
    ),
    "sam2": (
        "Sam2HieraDet",
        {
            "hidden_size": 8,
            "num_attention_heads": 1,
            "image_size": [32, 32],
            "blocks_per_stage": [1],
            "embed_dim_per_stage": [8],
            "num_attention_heads_per_stage": [2],
            "window_size_per_stage": [4],
            "num_query_pool_stages": 0,
            "global_attention_blocks": [0],
            "window_positional_embedding_background_size": [4, 4],
        },
        large,
    ),
    "qwen2_vl": (
        "Qwen2VLVision",
        {**GRID, "embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2},
        grid,
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLVision",
        {
            **GRID,
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [0],
        },
        grid,
    ),
    "qwen3_vl": (
        "Qwen3VLVision",
        {
            **GRID,
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 16,
            "deepstack_visual_indexes": [],
            "num_position_embeddings": 16,
        },
        grid,
    ),
}


# Classes with a name of their own.
KINDS = {
    "qwen2_vl": "Qwen2VisionTransformerPretrainedModel",
    "qwen2_5_vl": "Qwen2_5_VisionTransformerPretrainedModel",
    "decision_transformer": "DecisionTransformerGPT2Model",
    "got_ocr2": "GotOcr2VisionEncoder",
}


def build(name: str) -> nn.Module:
    """Return the family's model in float64, every parameter filled."""
    kind, config, _ = FUSED[name]
    made: Any = getattr(transformers, f"{kind}Config")(**config)
    made._attn_implementation = "eager"
    module = import_module(type(made).__module__.replace(".configuration_", ".modeling_"))
    model = getattr(module, KINDS.get(name, f"{kind}Model"))(made).eval().double()
    for seed, parameter in enumerate(model.parameters()):
        drawn = torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        parameter.data.copy_(drawn / 4)
    return model


def roles(model: nn.Module, name: str, run: Callable[[nn.Module], None]) -> list[str]:
    """Return what each output of the layer called `name` is to the module around it.

    One output is moved at one place. A key or a value moves what comes out at other places too, a
    query does not; what comes out is linear in values, and in what a gate is multiplied with
    ("up"). Queries and gates both read "q".
    """
    layer, around = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
    moved, kept = {"output": -1, "by": 0.0}, {}

    def move(_: nn.Module, args: Any, y: Tensor) -> Tensor:
        kept["outputs"] = y.shape[-1]
        if moved["output"] < 0:
            return y
        y = y.clone()
        y.view(-1, y.shape[-1])[1, int(moved["output"])] += moved["by"]
        return y

    def keep(_: nn.Module, args: Any, y: Any) -> None:
        y = y[0] if isinstance(y, tuple | list) else y
        kept.setdefault("y", y.reshape(-1, y.shape[-1]))

    def outcome(output: int, by: float) -> Tensor:
        kept.pop("y", None)
        moved.update(output=output, by=by)
        with torch.no_grad():
            run(model)
        return kept["y"]

    hooks = [layer.register_forward_hook(move), around.register_forward_hook(keep)]
    base, told = outcome(-1, 0.0), []
    for output in range(kept["outputs"]):
        one, two = outcome(output, 2.0) - base, outcome(output, 4.0) - base
        places = int((one.abs().amax(1) > 1e-13).sum())
        linear = bool((two - 2 * one).abs().max() < 1e-9 * one.abs().max())
        told.append(
            "none"
            if not places
            else ("v" if linear else "k")
            if places > 1
            else "up"
            if linear
            else "q"
        )
    for hook in hooks:
        hook.remove()
    return told
