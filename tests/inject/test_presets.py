"""Presets on GPT, BERT, T5 and torch's attention, with gradients; exclude, for every kind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from lorakit import Spec
from lorakit.errors import TargetError
from lorakit.inject.targets import ROLE_PRESETS

from ..laws.table import fill
from ..models.families import FAMILIES
from ..sites.experts import experts_model

Model = Callable[[], nn.Module]
BLOCKS_2 = {"q": 2, "k": 2, "v": 2, "o": 2, "qv": 4, "qkv": 6, "qkvo": 8}
BLOCKS_6 = {"q": 6, "k": 6, "v": 6, "o": 6, "qv": 12, "qkv": 18, "qkvo": 24}
T5 = FAMILIES["t5"]
GATED = {"feed_forward_proj": "gated-gelu", "is_gated_act": True, "dense_act_fn": "gelu_new"}
MODELS: dict[str, tuple[Any, dict[str, int]]] = {
    "gpt2": (FAMILIES["gpt2"], {**BLOCKS_2, "attention": 4, "mlp": 4}),
    "bloom": (FAMILIES["bloom"], {**BLOCKS_2, "attention": 4, "mlp": 4}),
    "bert": (FAMILIES["bert"], {**BLOCKS_2, "attention": 8, "mlp": 4}),
    "t5": (T5, {**BLOCKS_6, "attention": 24, "mlp": 8}),
    "t5, gated": (
        type(T5)(**{**vars(T5), "options": {**T5.options, **GATED}}),
        {**BLOCKS_6, "attention": 24, "mlp": 12},
    ),
}
NAMES = {
    ("t5", "qkvo"): {"q", "k", "v", "o"},
    ("t5", "mlp"): {"wi", "wo"},
    ("t5, gated", "mlp"): {"wi_0", "wi_1", "wo"},
    ("gpt2", "qv"): {"q", "v"},
    ("bloom", "mlp"): {"dense_h_to_4h", "dense_4h_to_h"},
    ("bert", "qkv"): {"query", "key", "value"},
}
CASES = [(name, preset) for name in MODELS for preset in ROLE_PRESETS]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), CASES)
def test_each_preset_trains_its_projections_alone(name: str, preset: str) -> None:
    family, counts = MODELS[name]
    model = family.build()
    shapes = [place.shape for place in lorakit.select(model, preset).values()]
    adapter = fill(lorakit.attach(model, Spec(rank=2, targets=preset)))
    assert len(adapter.deltas) == counts[preset]
    last_parts = {layer.rpartition(".")[2] for layer in adapter.deltas}
    assert NAMES.get((name, preset), last_parts) == last_parts
    covered = lorakit.coverage(model)
    assert covered.trainable_parameters == sum(2 * (out + inputs) for out, inputs in shapes)
    model(**family.inputs).loss.backward()
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in adapter.parameters()
    )
    own = {id(parameter) for parameter in adapter.parameters()}
    others = [parameter for parameter in model.parameters() if id(parameter) not in own]
    assert all(parameter.grad is None for parameter in others)


@pytest.mark.parametrize("preset", [preset for preset in ROLE_PRESETS if preset != "mlp"])
def test_each_preset_equals_the_dense_attention_of_torch(preset: str) -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True).double()
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = {"in_proj": model.in_proj_weight.detach(), "out_proj": model.out_proj.weight.detach()}
    changed = {name: weight.clone() for name, weight in weights.items()}
    adapter = fill(lorakit.attach(model, Spec(rank=2, targets=preset, dtype="float64")))
    rows = {"q": slice(0, 8), "k": slice(8, 16), "v": slice(16, 24)}
    for name, delta in adapter.deltas.items():
        key = "out_proj" if name == "out_proj" else "in_proj"
        changed[key][rows.get(name, slice(None))] += delta.matrix().detach()
    attached, _ = model(x, x, x)
    attached.sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    lorakit.detach(model)
    model.in_proj_weight.data, model.out_proj.weight.data = changed["in_proj"], changed["out_proj"]
    dense, _ = model(x, x, x)
    assert torch.allclose(attached, dense, rtol=1e-12, atol=1e-12)


def mixed() -> nn.Module:
    return nn.ModuleDict(
        {
            "table": nn.Embedding(20, 8),
            "position": nn.Embedding(10, 8),
            "near": nn.Conv2d(3, 4, 3),
            "far": nn.Conv1d(3, 4, 5),
            "back": nn.ConvTranspose1d(3, 4, 5),
            "state": nn.LSTM(6, 8),
            "look": nn.MultiheadAttention(8, 2),
            "first": nn.Linear(8, 8),
            "second": nn.Linear(8, 8),
        }
    )


def gpt2() -> nn.Module:
    return FAMILIES["gpt2"].build()


EXCLUDED: dict[str, tuple[Model, Any, Any, set[str]]] = {
    "linear": (mixed, ["first", "second"], ["first"], {"second"}),
    "linear, by an expression": (mixed, "first|second", "fir.*", {"second"}),
    "embedding": (mixed, ["table", "position"], ["pos*"], {"table"}),
    "convolution": (mixed, "conv", ["far"], {"near", "back"}),
    "convolution, by an expression": (mixed, "conv", "near|back", {"far"}),
    "all of a preset but another": (mixed, ["*"], "conv", set()),
    "parameters": (
        mixed,
        ["state.*"],
        ["weight_hh_l0"],
        {"state.weight_ih_l0"},
    ),
    "parts of attention": (mixed, "qkvo", ["look.k"], {"look.q", "look.v", "look.out_proj"}),
    "a layer with its parts": (mixed, "qkvo", ["in_proj"], {"look.out_proj"}),
    "a part of a whole layer": (
        mixed,
        "attention",
        "k",
        {"look.q", "look.v", "look.out_proj"},
    ),
}


@pytest.mark.parametrize("case", EXCLUDED)
def test_any_kind_can_be_excluded(case: str) -> None:
    make, targets, exclude, wanted = EXCLUDED[case]
    chosen = set(lorakit.select(make(), targets, exclude))
    if not wanted:
        every = set(lorakit.select(make(), targets))
        wanted = every - set(lorakit.select(make(), exclude))
    assert chosen == wanted


@pytest.mark.slow
def test_parts_of_fused_layers_can_be_excluded() -> None:
    ends = {"c_attn.q", "c_attn.v"}

    def find_ends(targets: Any, exclude: Any) -> set[str]:
        names = lorakit.select(gpt2(), targets, exclude)
        return {".".join(name.split(".")[-2:]) for name in names if "c_attn" in name}

    assert find_ends("qkv", "k") == find_ends("qkv", ["c_attn.k"]) == ends
    assert find_ends("all-linear", "k") == find_ends("attention", ["*.c_attn.k"]) == ends
    assert find_ends("all-linear", ["c_attn"]) == set()
    assert find_ends(["c_attn.?", "c_proj"], ["c_attn"]) == set()
    assert find_ends("all-linear", ["h.0.*.k"]) == {*ends, "attn.c_attn"}
    with pytest.raises(TargetError, match="exclude leaves no layer"):
        lorakit.select(gpt2(), "qkv", ["c_attn"])


@pytest.mark.slow
def test_experts_and_their_router_can_be_excluded() -> None:
    model = experts_model("mixtral")

    def find_ends(targets: Any, exclude: Any) -> set[str]:
        return {name.rpartition(".")[2] for name in lorakit.select(model, targets, exclude)}

    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert find_ends("all-linear", ["experts.*"]) == attention
    assert find_ends("all-linear", "mlp") == attention
    assert find_ends("all-linear", ["gate_up_proj"]) == {*attention, "down_proj"}
    assert find_ends("mlp", r"layers\.\d\.mlp\.experts\.down_proj") == {"gate_up_proj"}
    assert find_ends(["mlp.gate", "experts.*"], ["gate"]) == {"gate_up_proj", "down_proj"}
    assert len(lorakit.select(model, "mlp", ["layers.{0..0}.*"])) == 2
