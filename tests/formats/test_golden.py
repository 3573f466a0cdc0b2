"""Adapters that PEFT wrote once are read, and give the outputs that PEFT computed with them."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import lorakit
from lorakit import Adapter

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def make() -> object:
    pytest.importorskip("peft")
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_golden_file_means_what_it_meant(family: str, make: object) -> None:
    expected = json.loads((GOLDEN / family / "expected.json").read_text())
    model = make.base(family)
    assert torch.allclose(
        torch.tensor(make.logits(model)), torch.tensor(expected["base"]), atol=1e-5
    )
    adapter = Adapter.load(GOLDEN / family)
    lorakit.attach(model, adapter)
    got, want = torch.tensor(make.logits(model)), torch.tensor(expected["adapted"])
    assert torch.allclose(got, want, atol=1e-5)
    assert (want - torch.tensor(expected["base"])).abs().max() > 0.1


def test_golden_settings_are_read_as_written(make: object) -> None:
    llama, gpt2 = (Adapter.load(GOLDEN / family) for family in ("llama", "gpt2"))
    name = "model.layers.{}.{}".format
    scales = {
        n: (d.rank, d.alpha, round(d.scale * d.rank**0.5, 6)) for n, d in llama.deltas.items()
    }
    assert scales == {
        name(0, "self_attn.q_proj"): (2, 6.0, 6.0),
        name(1, "self_attn.q_proj"): (2, 5.0, 5.0),
        name(0, "mlp.down_proj"): (3, 6.0, 6.0),
        name(1, "mlp.down_proj"): (3, 6.0, 6.0),
    }
    assert list(llama.full_parameters) == ["lm_head.weight"] and llama.spec.full_modules == (
        "lm_head",
    )
    assert {(d.rank, d.scale, d.dropout, d.kind) for d in gpt2.deltas.values()} == {
        (2, 2.0, 0.1, "conv1d")
    }
    assert gpt2.spec.bias == "adapted" and len(gpt2.full_parameters) == 4
    assert gpt2.provenance == {"task_type": "CAUSAL_LM"}
