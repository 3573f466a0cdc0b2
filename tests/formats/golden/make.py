"""Make the golden adapters with PEFT: `python tests/formats/golden/make.py`, run once with peft
0.21.2.

Each folder holds what PEFT wrote, and `expected.json`: the logits that PEFT computed with it on a
tiny model. The model's weights follow from formulas, not from a random generator, so any version
builds the same one.
"""

import json
from pathlib import Path

import peft
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
IDS = [[3, 17, 8, 0, 19]]
LLAMA = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
}
GPT2 = {
    "vocab_size": 20,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
ADAPTERS = {
    "llama": {
        "r": 2,
        "lora_alpha": 6,
        "use_rslora": True,
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"down_proj": 3},
        "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 5},
        "modules_to_save": ["lm_head"],
    },
    "gpt2": {
        "r": 2,
        "lora_alpha": 4,
        "fan_in_fan_out": True,
        "target_modules": ["c_attn", "c_fc"],
        "bias": "lora_only",
        "lora_dropout": 0.1,
        "task_type": "CAUSAL_LM",
    },
}


def filled(model: nn.Module, size: float, start: int = 0) -> nn.Module:
    """Fill what requires a gradient with numbers that look random, and are whole until they are
    scaled.
    """
    parameters = [p for _, p in sorted(model.named_parameters()) if p.requires_grad]
    for at, parameter in enumerate(parameters):
        count = torch.arange(parameter.numel()) + 37 * (start + at)
        parameter.data.copy_(
            (size * ((31 * count**2 + 17 * count) % 1009 / 504 - 1)).reshape(parameter.shape)
        )
    return model.eval()


def base(family: str) -> nn.Module:
    model = (
        LlamaForCausalLM(LlamaConfig(**LLAMA))
        if family == "llama"
        else GPT2LMHeadModel(GPT2Config(**GPT2))
    )
    return filled(model, 0.5)


def logits(model: nn.Module) -> list[list[list[float]]]:
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS)).logits.tolist()


if __name__ == "__main__":
    for family, options in ADAPTERS.items():
        model = filled(
            peft.get_peft_model(base(family), peft.LoraConfig(**options)), 0.4, start=100
        )
        model.save_pretrained(HERE / family)
        (HERE / family / "README.md").unlink(missing_ok=True)
        expected = {
            "peft": peft.__version__,
            "base": logits(base(family)),
            "adapted": logits(model),
        }
        (HERE / family / "expected.json").write_text(json.dumps(expected) + "\n")
