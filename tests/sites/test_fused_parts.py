"""Parts of fused layers: which rows they are is held against the forward of each family, row by
row.
"""

from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from lorakit import Spec
from lorakit.errors import TargetError
from lorakit.inject.places import Place, find_places
from lorakit.inject.targets import find_role
from lorakit.sites import families

from ..laws.models import gpt2
from ..laws.table import error, fill, randn
from . import fused

LIKE = {"gate": "q"}  # what `fused.roles` says of a gate


def parts_of(model: nn.Module) -> dict[str, list[Place]]:
    """Return the parts of fused linear layers by layer."""
    found: dict[str, list[Place]] = {}
    for place in find_places(model).values():
        if place.is_part and place.site.kind in ("linear", "conv1d"):
            found.setdefault(place.layer_name, []).append(place)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", fused.FUSED)
def test_each_output_belongs_to_the_part_that_the_table_names(family: str) -> None:
    model = fused.build(family)
    layers = parts_of(model)
    assert layers
    for name, parts in layers.items():
        told = fused.roles(model, name, fused.FUSED[family][2])
        want = ["?"] * len(told)
        for place in parts:
            groups, block, start, size = place.site.output_slice
            part = place.name.rpartition(".")[2]
            for group in range(groups):
                want[group * block + start : group * block + start + size] = [
                    LIKE.get(part, part)
                ] * size
        assert told == want, name


@pytest.mark.slow
@pytest.mark.parametrize("family", fused.FUSED)
def test_presets_take_parts(family: str) -> None:
    model = fused.build(family)
    of = {place.name: place for parts in parts_of(model).values() for place in parts}
    for preset in ("q", "k", "v"):
        wanted = [n for n in of if n.endswith(f".{preset}")]
        if wanted and "crossed" not in family:
            assert [n for n in lorakit.select(model, preset) if n in of] == wanted
    assert {find_role(n) for n in of if n.endswith((".gate", ".up"))} <= {"mlp"}
    assert not any(place.is_part for place in lorakit.select(model, "all-linear").values())
    if any(find_role(place.layer_name) == "qkv" for place in of.values()):
        assert {find_role(n) for n in lorakit.select(model, "o")} == {"o"}


@pytest.mark.slow
def test_every_family_of_the_table_is_tested_against_its_forward() -> None:
    built = {fused.build(name) for name in fused.FUSED}
    configs = [module.__dict__.get("config") for model in built for module in model.modules()]
    seen_types = {config.model_type for config in configs if config is not None}
    # The three models of Bark are one class.
    assert {f for row in families.FUSED_LAYERS for f in row[0]} - seen_types <= {
        "coarse_acoustics",
        "fine_acoustics",
    }


def test_a_part_equals_a_separate_layer() -> None:
    """GPT-2 with k adapted, beside GPT-2 whose attention is split by hand and gets k from a layer
    of its own.
    """
    model, twin = gpt2().double(), gpt2().double()
    names = [f"transformer.h.{i}.attn.c_attn.k" for i in (0, 1)]
    adapter = fill(lorakit.attach(model, Spec(rank=3, targets=names, dtype="float64")))
    for i, name in enumerate(names):
        delta, fused_layer = adapter.deltas[name], twin.transformer.h[i].attn.c_attn
        own = nn.Linear(16, 16).double()
        own.weight.data = (
            fused_layer.weight[:, 16:32].T + delta.scale * delta.B.detach() @ delta.A.detach()
        )
        own.bias.data = fused_layer.bias[16:32]

        def split(layer: Any, args: Any, y: torch.Tensor, own: nn.Linear = own) -> torch.Tensor:
            q, _, v = y.split(16, dim=-1)
            return torch.cat([q, own(args[0]), v], dim=-1)

        fused_layer.register_forward_hook(split)
    ids = torch.arange(12).view(2, 6)
    want, base = twin(ids).logits.detach(), gpt2().double()(ids).logits
    assert error(model(ids).logits, want) < 1e-12 < error(base, want)


def test_parts_that_fit_only_some_named_layers_are_refused() -> None:
    model = nn.ModuleDict(
        {
            "a": nn.ModuleDict({"qkv": nn.Linear(4, 12)}),
            "b": nn.ModuleDict({"qkv": nn.Linear(4, 9)}),
        }
    )
    with pytest.raises(TargetError) as caught:
        lorakit.attach(
            model, Spec(rank=1, targets=["a.qkv.q"], parts={"qkv": {"q": 4, "k": 4, "v": 4}})
        )
    assert (
        str(caught.value)
        == "1 of 1 parts fit no layer.\n  'qkv'   its parts have 12 outputs, b.qkv has 9\n"
        "Nothing was attached."
    )
    both = {"b.qkv": {"q": 1, "k": 1, "v": 1, "groups": 3}, "qkv": {"q": 4, "k": 4, "v": 4}}
    adapter = lorakit.attach(model, Spec(rank=1, targets="k", parts=both))
    assert {n: delta.shape for n, delta in adapter.deltas.items()} == {
        "a.qkv.k": (4, 4),
        "b.qkv.k": (3, 4),
    }


def test_a_given_layout_replaces_that_of_the_family() -> None:
    model = gpt2()
    given = {"c_attn": {"k": 12, "rest": 36}}
    lorakit.attach(model, Spec(rank=2, targets=["c_attn.k"], parts=given))
    assert [m["shape"] for m in lorakit.coverage(model).modules] == [[12, 16]] * 2
    x = randn(2, 16).float()
    layer: Any = model.transformer.h[0].attn.c_attn
    base = gpt2().transformer.h[0].attn.c_attn(x)
    fill(lorakit.attached(model)["default"])
    moved = (layer(x) - base).abs().amax(0) > 1e-6
    assert moved[:12].all() and not moved[12:].any()
