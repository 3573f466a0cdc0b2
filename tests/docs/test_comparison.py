"""The cells of the README's table about PEFT and TRL, tried with the installed versions."""

import copy
import inspect
import warnings
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

import lorakit

from ..laws.models import llama
from ..laws.table import randn


def peft_model(base: nn.Module, **settings: object) -> PeftModel:
    """Return a base with a PEFT adapter of rank 4 whose B is filled."""
    config = LoraConfig(r=4, lora_alpha=8, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, config)
    fill(model)
    return model


def fill(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.1 * randn(*parameter.shape).to(parameter.dtype))


def test_peft_accepts_a_misspelled_target_beside_a_right_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # of an old name in transformers
        model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj", "v_porj"]))
    assert not any("v_proj" in name for name, _ in model.named_parameters() if "lora" in name)
    with pytest.raises(lorakit.LorakitError, match="did you mean 'v_proj'"):
        lorakit.attach(llama(), lorakit.Spec(rank=4, targets=["q_proj", "v_porj"]))


def test_peft_unmerges_by_subtraction() -> None:
    base = llama().to(torch.bfloat16)
    before = copy.deepcopy(base.state_dict())
    model = peft_model(base, target_modules=["q_proj"])
    model.merge_adapter()
    model.unmerge_adapter()
    after = model.state_dict()
    changed = 0
    for name, old in before.items():
        if name.endswith("q_proj.weight"):
            key = f"base_model.model.{name}".replace("q_proj.weight", "q_proj.base_layer.weight")
            changed += int((after[key] != old).sum())
    assert changed > 0


@pytest.mark.slow
def test_peft_takes_an_adapter_of_another_base(tmp_path: Path) -> None:
    peft_model(llama(), target_modules=["q_proj"]).save_pretrained(tmp_path)
    other = llama()
    nn.init.normal_(other.model.layers[0].mlp.up_proj.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # of an old name in transformers
        PeftModel.from_pretrained(copy.deepcopy(other), str(tmp_path))

    adapter = lorakit.attach(llama(), lorakit.Spec(rank=4, targets=["q_proj"]))
    with pytest.raises(lorakit.LorakitError, match="other base weights"):
        lorakit.attach(other, lorakit.Adapter.load(adapter.save(tmp_path / "ours")))


def delta_of(model: PeftModel, name: str) -> Tensor:
    return model.base_model.model.model.layers[0].self_attn.q_proj.get_delta_weight(name)


def test_peft_sums_adapters_of_two_ranks_by_concatenation_only() -> None:
    model = peft_model(llama(), target_modules=["q_proj"])
    model.add_adapter("wide", LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj"]))
    fill(model)
    names, weights = ["default", "wide"], [1.0, 1.0]
    with pytest.raises(ValueError, match="same r value"):
        model.add_weighted_adapter(names, weights, "sum", combination_type="linear")
    model.add_weighted_adapter(names, weights, "sum", combination_type="cat")
    wanted = delta_of(model, "default") + delta_of(model, "wide")
    assert torch.allclose(delta_of(model, "sum"), wanted, atol=1e-6)


@pytest.mark.parametrize("layer", [nn.LSTM(4, 4), nn.GRU(4, 4)])
def test_peft_has_no_recurrent_layers(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match="is not supported"):
        get_peft_model(nn.ModuleDict({"layer": layer}), LoraConfig(target_modules=["layer"]))


def test_peft_adapts_no_slice_of_multihead_attention() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    config = LoraConfig(r=2, target_modules=["attention"])
    adapted = get_peft_model(model, config)
    shapes = [tuple(p.shape) for name, p in adapted.named_parameters() if "lora_B" in name]
    assert (24, 2) in shapes  # q, k and v together


@pytest.mark.slow
def test_trl_leaves_lora_to_peft() -> None:
    import trl  # takes a second

    assert "get_peft_model" in inspect.getsource(trl.SFTTrainer)
    assert peft.__version__


def test_readme_and_page_have_the_same_rows() -> None:
    root = Path(__file__).parents[2]
    readme = (root / "README.md").read_text("utf-8")
    page = (root / "docs" / "comparison.md").read_text("utf-8")
    table = readme.partition("## Beside other tools")[2].partition("## Words")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    missing = [row for row in rows if row and row != "---" and f"### {row}" not in page]
    assert missing == []
