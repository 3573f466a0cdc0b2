"""Files that PEFT writes in special cases: the outputs are those of PEFT."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lorakit
from lorakit import Adapter

from ..models import bert, llama, logits, randn, tied

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def resized() -> nn.Module:
    model = llama()
    model.resize_token_embeddings(66)
    for seed, layer in enumerate((model.get_input_embeddings(), model.lm_head)):
        layer.weight.data.copy_(randn(*layer.weight.shape, seed=seed))
    return model.eval()


def save(folder: Path, base: nn.Module, config: dict[str, Any], **options: Any) -> torch.Tensor:
    """Let PEFT save an adapter with nonzero values, and return its logits."""
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, **config)).eval()
    for seed, parameter in enumerate(model.parameters()):
        if parameter.requires_grad:
            parameter.data.add_(randn(*parameter.shape, seed=seed) / 8)
    model.save_pretrained(folder, **options)
    return logits(model)


def outputs(base: nn.Module, folder: Path) -> torch.Tensor:
    lorakit.attach(base, Adapter.load(folder))
    return logits(base)


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], dict[str, Any]]] = {
    "embeddings saved along": (
        resized,
        {"target_modules": ["q_proj", "v_proj"]},
        {"save_embedding_layers": True},
    ),
    "tied embeddings saved along": (
        tied,
        {"target_modules": ["q_proj"]},
        {"save_embedding_layers": True},
    ),
    "all biases of a full module": (
        bert,
        {"target_modules": ["query"], "bias": "all", "task_type": "SEQ_CLS"},
        {},
    ),
    "a tied embedding in full": (
        tied,
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
        {},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_peft(case: str, tmp_path: Path) -> None:
    build, config, options = CASES[case]
    want = save(tmp_path, build(), config, **options)
    assert torch.allclose(outputs(build(), tmp_path), want, atol=1e-5)
    assert (want - logits(build())).abs().max() > 0.1
    again = Adapter.load(tmp_path).save(tmp_path / "again")
    assert Adapter.load(again) == Adapter.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_factors_of_eight_bits_are_widened(dtype: torch.dtype, tmp_path: Path) -> None:
    save(tmp_path, llama(), {"target_modules": ["q_proj"]})
    narrow = {key: tensor.to(dtype) for key, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(narrow, tmp_path / WEIGHTS, {"format": "pt"})
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path).eval()
    adapter = Adapter.load(tmp_path)
    assert adapter.dtype == torch.float32
    assert torch.allclose(outputs(llama(), tmp_path), logits(theirs), atol=1e-6)


@pytest.mark.slow
def test_keys_with_the_name_of_the_adapter_are_read(tmp_path: Path) -> None:
    want = save(tmp_path, llama(), {"target_modules": ["q_proj", "embed_tokens"]})
    tensors = load_file(tmp_path / WEIGHTS)
    named: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        for factor in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"):
            key = key.replace(f".{factor}", f".{factor}.default")
        named[key] = tensor
    assert len(named) == len(tensors)
    save_file(named, tmp_path / WEIGHTS, {"format": "pt"})
    assert torch.allclose(outputs(llama(), tmp_path), want, atol=1e-5)


@pytest.mark.slow
def test_keys_of_other_programs_do_no_harm(tmp_path: Path) -> None:
    want = save(tmp_path, llama(), {"target_modules": ["q_proj"]})
    path = tmp_path / CONFIG
    added = {"unsloth_version": "2025.1", "library_name": "peft", "lora_dtype": "bfloat16"}
    added |= {"merge_weights": True, "created_at": "today", "_from_model_config": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), **added}))
    assert torch.allclose(outputs(llama(), tmp_path), want, atol=1e-5)
