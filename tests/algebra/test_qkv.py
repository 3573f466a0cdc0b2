"""Fused layers are split and fused again, bit for bit."""

import pytest
import torch
from torch import nn

import lorakit
from lorakit import Adapter, Spec
from lorakit.algebra.qkv import fuse_adapter, fuse_qkv, split_adapter, split_qkv
from lorakit.errors import AdapterMismatch
from lorakit.sites.fused_parts import Layout

from ..laws.models import gpt2, logits
from ..laws.table import fill, randn, same_bits

LAYOUTS = {f"transformer.h.{i}.attn.c_attn": Layout({"q": 16, "k": 16, "v": 16}) for i in (0, 1)}


@pytest.mark.parametrize(
    "layout",
    [Layout({"q": 4, "k": 2, "v": 2}), Layout({"q": 2, "v": 1, "k": 1}, groups=2)],
    ids=str,
)
@pytest.mark.parametrize("transposed", [False, True])
def test_fusing_a_split_state_dict_restores_its_bits_and_the_parts_are_layers(
    layout: Layout, transposed: bool
) -> None:
    layer, x = nn.Linear(5, 8).double(), randn(3, 5)
    state = {
        "a.weight": layer.weight.detach(),
        "a.bias": layer.bias.detach(),
        "rest.weight": randn(2, 2),
    }
    if transposed:
        state["a.weight"] = state["a.weight"].T.contiguous()
    apart = split_qkv(state, {"a": layout}, transposed=transposed)
    assert {*apart} == {
        "rest.weight",
        *(f"a.{part}.{key}" for part in layout.sizes for key in ("weight", "bias")),
    }
    assert same_bits(fuse_qkv(apart, {"a": layout}, transposed=transposed), state)
    y = layer(x).unflatten(-1, (layout.groups, -1)).split([*layout.sizes.values()], dim=-1)
    for part, rows in zip(layout.sizes, y, strict=True):
        weight = apart[f"a.{part}.weight"]
        own = x @ (weight if transposed else weight.T) + apart[f"a.{part}.bias"]
        assert torch.allclose(own, rows.flatten(-2), rtol=1e-12, atol=1e-14)


def test_fusing_a_split_adapter_restores_its_bits_and_the_parts_act_the_same() -> None:
    model = gpt2()
    adapter = fill(lorakit.attach(model, Spec(rank=3, targets=["c_attn", "c_fc"])))
    apart = split_adapter(adapter, LAYOUTS)
    assert (
        sorted(n.rpartition(".")[2] for n in apart.deltas)
        == ["c_fc"] * 2 + ["k"] * 2 + ["q"] * 2 + ["v"] * 2
    )
    twin = gpt2()
    lorakit.attach(twin, apart)
    assert torch.allclose(logits(twin), logits(model), atol=1e-6) and not torch.allclose(
        logits(gpt2()), logits(model), atol=1e-2
    )
    assert fuse_adapter(apart, LAYOUTS) == adapter


def test_the_part_that_comes_first_in_the_adapter_gives_the_settings() -> None:
    model = gpt2()
    whole = fill(lorakit.attach(model, Spec(rank=3, targets=["c_attn"])))
    apart = split_adapter(whole, LAYOUTS)
    last_first = dict(reversed(apart.deltas.items()))
    for delta in last_first.values():
        delta.dropout = 0.25 if delta.output_slice[2] == 32 else 0.0
    fused = fuse_adapter(Adapter(apart.spec, last_first), LAYOUTS)
    assert [delta.dropout for delta in fused.deltas.values()] == [0.25, 0.25]


def test_missing_or_different_parts_are_refused() -> None:
    with pytest.raises(
        AdapterMismatch,
        match=r"a\.k\.weight   is missing\n  a\.v\.weight   is missing\nNothing was fused",
    ):
        fuse_qkv({"a.q.weight": torch.ones(2, 2)}, {"a": Layout({"q": 2, "k": 2, "v": 2})})
    with pytest.raises(AdapterMismatch, match=r"a\.weight has 5 outputs, its layout 6"):
        split_qkv({"a.weight": torch.ones(5, 2)}, {"a": Layout({"q": 2, "k": 2, "v": 2})})
    adapter = fill(lorakit.attach(gpt2(), Spec(rank=3, targets="qkv")))
    with pytest.raises(AdapterMismatch, match="6 parts cannot be fused"):
        fuse_adapter(adapter, LAYOUTS)
