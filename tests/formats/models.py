"""Tiny models of four families, made on the spot, and tensors from explicit generators."""

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

import lorakit


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(kind: type, config: object) -> nn.Module:
    """Build a model whose weights depend on their names alone, not on how a library starts them."""
    model = kind(config).eval()
    for name, parameter in model.named_parameters():
        seed = sum(name.encode())
        parameter.data.copy_(
            randn(*parameter.shape, seed=seed) * 0.2 + (1.0 if "norm" in name.lower() else 0.0)
        )
    return model


def llama() -> nn.Module:
    return filled(
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        ),
    )


def tied() -> nn.Module:
    return filled(
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        ),
    )


def gpt2() -> nn.Module:
    return filled(
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


def bert() -> nn.Module:
    return filled(
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


def t5() -> nn.Module:
    return filled(
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


FAMILIES = {"llama": llama, "tied": tied, "gpt2": gpt2, "bert": bert, "t5": t5}
IDS = [[(7 * i + 13 * j) % 50 for i in range(6)] for j in range(2)]


def logits(model: nn.Module) -> torch.Tensor:
    """Return the model's logits for fixed ids."""
    ids = torch.tensor(IDS)
    more = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def fill(adapter: lorakit.Adapter) -> lorakit.Adapter:
    for seed, (_, parameter) in enumerate(adapter.named_parameters()):
        parameter.data.copy_(randn(*parameter.shape, seed=seed) / 8)
    return adapter
