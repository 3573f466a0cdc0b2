"""Scale and bias of normalisation layers train whole: two vectors a layer, merged exactly, in
PEFT's files.
"""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import lorakit
from lorakit.errors import TargetError

from ..laws.table import bits, fill, randn, state

IDS = torch.arange(12).view(2, 6)
TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.group = nn.Conv1d(4, 8, 3), nn.GroupNorm(2, 8)
        self.layer, self.rms, self.bare = (
            nn.LayerNorm(8),
            nn.RMSNorm(8),
            nn.LayerNorm(8, elementwise_affine=False),
        )
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.bare(self.rms(self.layer(self.group(self.conv(x)).mT))))


MODELS = {  # model, its input, and values that its norms hold
    "plain": (Plain, {"x": randn(2, 4, 9).float()}, 8 * 5),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2)),
        {"input_ids": IDS},
        5 * 2 * 16,
    ),
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**TINY)), {"input_ids": IDS}, 5 * 16),
    "t5": (
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        ),
        {"input_ids": IDS, "decoder_input_ids": IDS},
        (3 + 4) * 16,
    ),
}
models = pytest.mark.parametrize("name", MODELS)


def made(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name][0]().eval()


def output(model: Any, name: str) -> torch.Tensor:
    with torch.no_grad():
        found = model(**MODELS[name][1])
    return found if name == "plain" else found.logits


@models
def test_all_scales_and_biases_train_and_nothing_else(name: str):
    model = made(name)
    before = output(model, name)
    adapter = lorakit.attach(model, lorakit.Spec(targets="none", full_modules=("norms",)))
    assert adapter.parameters_count == MODELS[name][2]
    assert torch.equal(output(model, name), before)
    found = model(**MODELS[name][1])
    (found if name == "plain" else found.logits).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())
    assert sum(p.numel() for p in model.parameters() if p.grad is not None) == MODELS[name][2]


@models
def test_merged_equals_attached_and_unmerge_restores_bits(name: str):
    model = made(name)
    before, values = output(model, name), state(model)
    fill(lorakit.attach(model, lorakit.Spec(targets="none", full_modules=("norms",))))
    attached = output(model, name)
    assert not torch.equal(attached, before)
    undo = lorakit.merge(model)
    assert torch.equal(output(model, name), attached)
    lorakit.unmerge(model, undo)
    assert torch.equal(output(model, name), attached)
    lorakit.detach(model)
    assert torch.equal(output(model, name), before)
    assert all(torch.equal(bits(model.state_dict()[key]), bits(values[key])) for key in values)


@models
def test_written_equals_read(name: str, tmp_path: Path):
    model = made(name)
    adapter = fill(lorakit.attach(model, lorakit.Spec(targets="none", full_modules=("norms",))))
    read = lorakit.Adapter.load(adapter.save(tmp_path))
    assert read == adapter
    fresh = made(name)
    lorakit.attach(fresh, read)
    assert torch.equal(output(fresh, name), output(model, name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_peft_reads_them(name: str, tmp_path: Path):
    model = made(name)
    fill(
        lorakit.attach(model, lorakit.Spec(rank=2, targets="all-linear", full_modules=("norms",)))
    ).save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(made(name), tmp_path)
    assert torch.allclose(output(theirs, name), output(model, name), atol=1e-5)


def test_a_module_called_norms_takes_precedence():
    model = nn.ModuleDict({"norms": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    assert list(
        lorakit.attach(model, lorakit.Spec(targets="none", full_modules=("norms",))).full_parameters
    ) == [
        "norms.weight",
        "norms.bias",
    ]


def test_a_model_without_norms_is_refused():
    with pytest.raises(
        TargetError, match="finds no normalisation layer with a scale in Sequential"
    ) as caught:
        lorakit.attach(
            nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
            lorakit.Spec(full_modules=("norms",)),
        )
    assert "Nothing was attached" in str(caught.value)
