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
from lorakit.errors import AdapterFileError

from ..models import bert, gpt2, llama, logits, randn, tied

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
    "embeddings of another name saved along": (
        gpt2,
        {"target_modules": ["c_attn"]},
        {"save_embedding_layers": True},
    ),
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
def test_keys_of_other_programs_do_no_harm_and_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    want = save(tmp_path, llama(), {"target_modules": ["q_proj"]})
    path = tmp_path / CONFIG
    added = {"unsloth_version": "2025.1", "library_name": "peft", "lora_dtype": "bfloat16"}
    added |= {"merge_weights": True, "created_at": "today", "_from_model_config": True}
    capsys.readouterr()
    Adapter.load(tmp_path)
    assert capsys.readouterr() == ("", "")
    path.write_text(json.dumps({**json.loads(path.read_text()), **added, "torch_dtype": None}))
    assert torch.allclose(outputs(llama(), tmp_path), want, atol=1e-5)
    assert " ".join(capsys.readouterr().err.split()) == (
        f"{path}: ignored, no tensor depends on it: _from_model_config, created_at, "
        "library_name, lora_dtype, merge_weights, unsloth_version"
    )


@pytest.mark.slow
def test_near_misses_are_of_keys_that_change_something(tmp_path: Path) -> None:
    save(tmp_path, llama(), {"target_modules": ["q_proj"]})
    path = tmp_path / CONFIG
    added = {"unsloth_versions": "2025.1", "library_names": "peft", "lora_alpa": 3}
    path.write_text(json.dumps({**json.loads(path.read_text()), **added}))
    with pytest.raises(AdapterFileError) as caught:
        Adapter.load(tmp_path)
    problem = f"{CONFIG}: unknown key"
    assert caught.value.faults == [
        f"{problem} 'unsloth_versions' = '2025.1' may change the meaning of the tensors",
        f"{problem} 'library_names' = 'peft' may change the meaning of the tensors",
        f"{problem} 'lora_alpa' = 3 may change the meaning of the tensors; did you mean "
        "'lora_alpha'?",
    ]


def grown(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a model with 16 more tokens, whose embedding and head depend on the seed."""
    model = build()
    model.resize_token_embeddings(66, mean_resizing=False)
    for place, layer in enumerate((model.get_input_embeddings(), model.get_output_embeddings())):
        layer.weight.data.copy_(randn(*layer.weight.shape, seed=seed + place))
    return model.eval()


ROWS = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 64]}
GROWN: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "embedding": (llama, {"target_modules": ["q_proj", "embed_tokens"]}),
    "both": (llama, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "both, dora": (llama, {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}),
    "tied, embedding": (tied, {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied, head": (tied, {"target_modules": ["q_proj", "lm_head"]}),
    "tied, both": (tied, {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "rows of tokens": (llama, ROWS),
    "tied, rows of tokens": (tied, ROWS),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", GROWN)
def test_the_weight_of_an_adapted_embedding_is_that_of_the_file(case: str, tmp_path: Path) -> None:
    """PEFT writes it along, and loads it into a base whose vocabulary was resized again."""
    build, config = GROWN[case]
    trained = save(tmp_path, grown(build, 1), config, save_embedding_layers=True)
    theirs = peft.PeftModel.from_pretrained(grown(build, 5), tmp_path).eval()
    want = logits(theirs)
    model = grown(build, 5)
    before = logits(model)
    adapter = lorakit.attach(model, Adapter.load(tmp_path))
    assert torch.allclose(logits(model), want, atol=1e-4)
    assert (before - want).abs().max() > 1
    undo = lorakit.merge(model)
    assert torch.allclose(logits(model), want, atol=1e-4)
    lorakit.unmerge(model, undo)
    again = adapter.save(tmp_path / "again")
    assert Adapter.load(again) == adapter
    lorakit.detach(model)
    assert torch.equal(logits(model), before)
    theirs = peft.PeftModel.from_pretrained(grown(build, 5), again).eval()
    assert torch.allclose(logits(theirs), want, atol=1e-4)
    # On the base of the training nothing is replaced.
    same = grown(build, 1)
    assert "model.embed_tokens.weight" not in attached(same, tmp_path).full_parameters
    assert torch.allclose(logits(same), trained, atol=1e-4)


def attached(model: nn.Module, folder: Path) -> Adapter:
    return lorakit.attach(model, Adapter.load(folder))
