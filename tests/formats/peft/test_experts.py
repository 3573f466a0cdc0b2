"""Stacks of experts in PEFT's files: ours in PEFT, PEFT's in ours, equal outputs; what cannot be
trusted is refused.
"""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import lorakit
from lorakit.errors import AdapterFileError

from ...laws.table import error, fill
from ...sites.experts import experts_model, logits
from ..models import gpt2
from ..rewrite import rewrite

BOTH, DOWN = ["experts.gate_up_proj", "experts.down_proj"], ["experts.down_proj"]


def base(family: str) -> Any:
    return experts_model(family, "grouped_mm" if family != "llama4" else "").float()


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::UserWarning",
    "ignore::FutureWarning",
    "ignore:The following rank_pattern keys:RuntimeWarning",
    "ignore:The following alpha_pattern keys:RuntimeWarning",
)  # what it says of them is not so
@pytest.mark.parametrize("targets", ["all-linear", BOTH, DOWN], ids=["all", "both", "down"])
@pytest.mark.parametrize("family", ["qwen3-moe", "gpt-oss", "llama4"])
def test_ours_loads_in_peft(family: str, targets: Any, tmp_path: Path):
    model = base(family)
    spec = lorakit.Spec(
        rank=3, targets=targets, overrides={"experts.down_proj": {"rank": 5, "alpha": 4.0}}
    )
    adapter = fill(lorakit.attach(model, spec))
    assert lorakit.Adapter.load(adapter.save(tmp_path)) == adapter
    theirs = peft.PeftModel.from_pretrained(base(family), tmp_path)
    assert error(logits(model), logits(theirs).detach()) < 1e-5
    assert error(logits(model), logits(base(family)).detach()) > 0.02


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::UserWarning",
    "ignore::FutureWarning",
    "ignore:The following rank_pattern keys:RuntimeWarning",
    "ignore:The following alpha_pattern keys:RuntimeWarning",
)  # what it says of them is not so
@pytest.mark.parametrize("targets", [BOTH, DOWN], ids=["both", "down"])
@pytest.mark.parametrize("family", ["qwen3-moe", "gpt-oss", "llama4"])
def test_theirs_loads_in_ours(family: str, targets: Any, tmp_path: Path):
    config = peft.LoraConfig(
        r=3,
        lora_alpha=4,
        target_modules=["q_proj"],
        target_parameters=targets,
        init_lora_weights=False,
        rank_pattern={"down_proj": 2},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = peft.get_peft_model(base(family), config)
    theirs.save_pretrained(tmp_path)
    adapter, model = lorakit.Adapter.load(tmp_path), base(family)
    lorakit.attach(model, adapter)
    assert {d.rank for n, d in adapter.deltas.items() if n.endswith("down_proj")} == {2}
    assert error(logits(model), logits(theirs).detach()) < 1e-5
    again = lorakit.Adapter.load(adapter.save(tmp_path / "again"))
    assert again == adapter


def planted(folder: Path, **change: Any) -> Path:
    fill(lorakit.attach(base("qwen3-moe"), lorakit.Spec(rank=3, targets=BOTH))).save(folder)
    rewrite(folder, change)
    return folder


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"r": 5}, "are not stacks of factors of rank 5"),
        (
            {"target_parameters": ["experts.other"]},
            "mlp.experts.other   is not a known stack of experts",
        ),
        (
            {"target_parameters": "experts.down_proj"},
            "target_parameters = 'experts.down_proj' is of the wrong type",
        ),
        (
            {
                "target_parameters": [
                    "mlp.experts.gate_up_proj",
                    "mlp.experts.up_proj",
                    "mlp.experts.down_proj",
                ]
            },
            "mlp.experts.gate_up_proj   is missing: target_parameters names it",
        ),
    ],
    ids=["rank", "name", "type", "missing"],
)
def test_what_cannot_be_trusted_is_refused(change: dict[str, Any], fault: str, tmp_path: Path):
    with pytest.raises(AdapterFileError) as caught:
        lorakit.Adapter.load(planted(tmp_path, **change))
    assert fault in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe", "gpt-oss"])
def test_a_router_is_adapted_by_its_name_alone(family: str, tmp_path: Path):
    name = "router" if family == "gpt-oss" else "gate"
    everything = lorakit.attach(base(family), lorakit.Spec(rank=2))
    assert not [layer for layer in everything.deltas if layer.endswith(name)]
    spec = lorakit.Spec(
        rank=3, targets=[name, "q_proj", "down_proj"], overrides={name: {"rank": 2, "alpha": 5}}
    )
    model = base(family)
    adapter = fill(lorakit.attach(model, spec))
    assert lorakit.Adapter.load(adapter.save(tmp_path)) == adapter
    theirs = peft.PeftModel.from_pretrained(base(family), tmp_path)
    assert error(logits(model), logits(theirs).detach()) < 1e-5
    assert error(logits(model), logits(base(family)).detach()) > 0.02


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ranks_and_alphas_of_a_parameter_are_those_of_its_name(tmp_path: Path):
    config = peft.LoraConfig(
        r=3,
        target_modules="all-linear",
        exclude_modules=["o_proj"],
        target_parameters=["gate.weight", "down_proj", "o_proj.weight"],
        init_lora_weights=False,
        rank_pattern={
            "gate.weight": 2,
            "experts.down_proj": 4,
            r".*0\.self_attn\.o_proj.weight": 1,
        },
        alpha_pattern={"o_proj.weight": 9},
    )
    theirs = peft.get_peft_model(base("mixtral"), config)
    theirs.save_pretrained(tmp_path)
    adapter, model = lorakit.Adapter.load(tmp_path), base("mixtral")
    again = lorakit.Adapter.load(adapter.save(tmp_path / "again"))
    assert again == adapter
    read = peft.PeftModel.from_pretrained(base("mixtral"), tmp_path / "again")
    lorakit.attach(model, adapter)
    assert error(logits(model), logits(theirs).detach()) < 1e-5
    assert error(logits(read), logits(theirs).detach()) < 1e-5


def test_a_router_has_no_dropout():
    with pytest.raises(lorakit.errors.SpecError) as caught:
        lorakit.attach(base("mixtral"), lorakit.Spec(rank=2, targets=["gate"], dropout=0.1))
    assert "dropout 0.1: MixtralTopKRouter reads this weight itself" in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["wpe", "attn.c_proj"])
def test_a_weight_that_is_stored_transposed_is_refused(name: str, tmp_path: Path):
    """Its factors may fit the shape of the matrix, and would be on the wrong sides."""
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=[f"{name}.weight"])
    peft.get_peft_model(gpt2(), config).save_pretrained(tmp_path)
    with pytest.raises(lorakit.errors.AdapterMismatch) as caught:
        lorakit.attach(gpt2(), lorakit.Adapter.load(tmp_path))
    kind = "embedding" if name == "wpe" else "conv1d"
    fault = f"{name}   was made for a layer of kind parameter, the model's is {kind}"
    assert fault in str(caught.value)
