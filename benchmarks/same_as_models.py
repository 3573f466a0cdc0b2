"""Small models that the calls of same_as.py work on, and what they are called with."""

import importlib
from typing import Any

import torch
import transformers
from same_as_files import digest
from same_as_inputs import bert_config, llama_config, mixtral_config, seeded
from torch import nn

IDS = torch.arange(28).reshape(4, 7) * 5 % 50
BATCHES = [
    {"input_ids": IDS, "labels": IDS},
    {"input_ids": IDS + 1, "labels": IDS + 1},
]
SHAPES = {
    "convolutions": (4, 4, 6, 6),
    "attention": (4, 7, 8),
    "recurrent": (4, 7, 8),
    "int8": (4, 7, 64),
}
LLAMA = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
}
GPT2 = {"n_layer": 2, "bos_token_id": 0, "eos_token_id": 0}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}


class Recurrent(nn.Module):
    """Recurrent layer, a bilinear one and a head."""

    def __init__(self, _: Any):
        super().__init__()
        self.lstm = nn.LSTM(8, 12, num_layers=2, batch_first=True)
        self.bilinear = nn.Bilinear(12, 12, 10)
        self.head = nn.Linear(10, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of every step."""
        y = self.lstm(x)[0]
        return self.head(torch.tanh(self.bilinear(y, y)))


def convolutions(_: Any) -> nn.Module:
    """Return a small network of convolutions."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Tanh(),
        nn.ConvTranspose2d(8, 6, 3, stride=2),
        nn.Flatten(),
        nn.Linear(486, 5),
    )


def attention(_: Any) -> nn.Module:
    """Return a block of torch's own attention."""
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def coarse(_: Any) -> nn.Module:
    """Return linear layers whose weights are int8."""
    quantization = importlib.import_module("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 32))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def gpt2_config(vocabulary: int, width: int, heads: int, positions: int) -> Any:
    """Return the config of a tiny GPT-2."""
    sizes = {**GPT2, "n_embd": width, "n_head": heads, "n_positions": positions}
    return transformers.GPT2Config(vocab_size=vocabulary, **sizes)


def t5_config() -> Any:
    """Return the config of a tiny T5."""
    return transformers.T5Config(vocab_size=50, **T5, decoder_start_token_id=0)


def families() -> dict[str, tuple[Any, Any]]:
    """Return class and config of each model."""
    llama = transformers.LlamaForCausalLM
    gpt2 = transformers.GPT2LMHeadModel
    bert = transformers.BertForSequenceClassification
    t5 = transformers.T5ForConditionalGeneration
    mixtral = transformers.MixtralForCausalLM
    return {
        "llama": (llama, llama_config(50)),
        "tied": (llama, llama_config(50, tie_word_embeddings=True)),
        "gpt2": (gpt2, gpt2_config(50, 16, 4, 64)),
        "bert": (bert, bert_config(50, num_labels=3)),
        "t5": (t5, t5_config()),
        "mixtral": (mixtral, mixtral_config(50)),
        "convolutions": (convolutions, None),
        "attention": (attention, None),
        "recurrent": (Recurrent, None),
        "int8": (coarse, None),
    }


def built(family: str, seed: int = 0) -> Any:
    """Return a fresh model of a family, in eval mode."""
    model_class, config = families()[family]
    model = seeded(model_class, config, seed)
    if family in SHAPES:
        generator = torch.Generator().manual_seed(1)
        model.__dict__["x"] = torch.randn(SHAPES[family], generator=generator)
    return model


def arguments(model: Any) -> dict[str, Any]:
    """Return what a model is called with, by keyword."""
    x = model.__dict__.get("x")
    if isinstance(model, nn.TransformerEncoderLayer):
        return {"src": x}
    if isinstance(model, nn.Sequential):
        return {"input": x}
    if isinstance(model, Recurrent):
        return {"x": x}
    if model.config.is_encoder_decoder:
        return {"input_ids": IDS, "decoder_input_ids": IDS.flip(1)}
    return {"input_ids": IDS}


def forward(model: Any, tokens: Any = None) -> torch.Tensor:
    """Return the outputs of a model for fixed inputs, or for these tokens."""
    given = arguments(model)
    if tokens is not None:
        given = {"input_ids": torch.tensor(tokens)}
    found = model(**given)
    return getattr(found, "logits", found)


def outputs(model: Any, tokens: Any = None) -> str:
    """Return the digest of the outputs."""
    with torch.no_grad():
        return digest(forward(model, tokens))


def by_formula(model: Any, size: float) -> Any:
    """Fill a model as tests/formats/golden/make.py does."""
    named = sorted(model.named_parameters())
    for place, (_, parameter) in enumerate(named):
        count = torch.arange(parameter.numel()) + 37 * place
        numbers = (31 * count**2 + 17 * count) % 1009 / 504 - 1
        parameter.data.copy_((size * numbers).reshape(parameter.shape))
    return model.eval()


def golden_model(family: str) -> Any:
    """Return the model that the golden files of a family are for."""
    if family == "llama":
        config = transformers.LlamaConfig(**LLAMA)
        return by_formula(transformers.LlamaForCausalLM(config), 0.5)
    config = gpt2_config(20, 8, 2, 16)
    return by_formula(transformers.GPT2LMHeadModel(config), 0.5)
