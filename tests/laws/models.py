"""Tiny models of the families that presets must fit, made on the spot."""

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)


def llama(**more: object) -> LlamaForCausalLM:
    return seeded(
        LlamaForCausalLM,
        LlamaConfig(
            **{
                "vocab_size": 50,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 64,
                **more,
            }
        ),
    )


def gpt2() -> GPT2LMHeadModel:
    return seeded(
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=50,
            n_embd=16,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=0,
        ),
    )


def bert() -> BertForSequenceClassification:
    return seeded(
        BertForSequenceClassification,
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=24,
            max_position_embeddings=64,
            num_labels=3,
        ),
    )


def t5() -> T5ForConditionalGeneration:
    return seeded(
        T5ForConditionalGeneration,
        T5Config(
            vocab_size=50,
            d_model=16,
            d_kv=4,
            d_ff=24,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
        ),
    )


def seeded(kind: type, config: object) -> nn.Module:
    """Build a model with the same weights every time, biases filled, without touching the global
    random state.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = kind(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(std=0.1)
    return model


FAMILIES = {"llama": llama, "gpt2": gpt2, "bert": bert, "t5": t5}


def logits(model: nn.Module) -> torch.Tensor:
    """Return the model's logits for fixed ids."""
    ids = torch.arange(12).reshape(2, 6) * 7 % 50
    more = {"decoder_input_ids": ids.flip(1)} if hasattr(model, "decoder") else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits
