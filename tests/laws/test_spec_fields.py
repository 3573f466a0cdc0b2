"""Every field of Spec changes something: one row for each, and a new field without one fails."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from lorakit import Adapter, Spec
from lorakit.inject.places import find_places
from lorakit.spec import Settings

from .models import bert


def attached(**fields: Any) -> tuple[nn.Module, Adapter]:
    model = bert()
    return model, lorakit.attach(model, Spec(**{"rank": 2, "targets": "qv", **fields}))


def deltas(**fields: Any) -> list[Any]:
    return list(attached(**fields)[1].deltas.values())


def shared(**fields: Any) -> list[Any]:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    return list(lorakit.attach(model, Spec(rank=2, targets=["0", "1"], **fields)).deltas.values())


QUERY = "bert.encoder.layer.0.attention.self.query"
# field -> (what it is flipped to, what must be so then, and not before)
FLIPS: dict[str, tuple[Any, Callable[..., bool]]] = {
    "delta": ("dora", lambda **f: all(type(d).__name__ == "DoRA" for d in deltas(**f))),
    "rank": (3, lambda **f: all(d.A.shape[0] == d.B.shape[1] == 3 for d in deltas(**f))),
    "alpha": (5.0, lambda **f: all(d.scale == 2.5 for d in deltas(**f))),
    "scale_rule": (
        "alpha/sqrt(rank)",
        lambda **f: all(abs(d.scale - 32 / 2**0.5) < 1e-9 for d in deltas(**f)),
    ),
    "targets": ("mlp", lambda **f: all(n.endswith("dense") for n in attached(**f)[1].deltas)),
    "exclude": (["layer.0.*"], lambda **f: len(deltas(**f)) == 2),
    "dropout": (0.5, lambda **f: all(d.dropout == 0.5 for d in deltas(**f))),
    "init": ("gaussian", lambda **f: all(0.3 < d.A.std() < 0.8 for d in deltas(**f))),
    "init_std": (9.0, lambda **f: all(d.A.std() > 5 for d in deltas(**{"init": "gaussian", **f}))),
    "bias": ("all", lambda **f: f"{QUERY}.bias" in attached(**f)[1].full_parameters),
    "full_modules": (
        ["classifier"],
        lambda **f: [*attached(**f)[1].full_parameters] == ["classifier.weight", "classifier.bias"],
    ),
    "token_rows": (
        (3, 5),
        lambda **f: "bert.embeddings.word_embeddings" in attached(**f)[1].deltas,
    ),
    "parts": (
        {"query": {"one": 6, "two": 10}},
        lambda **f: f"{QUERY}.one" in find_places(bert(), f.get("parts")),
    ),
    "tie": (True, lambda **f: [sum(1 for _ in d.parameters()) for d in shared(**f)] == [2, 0]),
    "dtype": (
        "bfloat16",
        lambda **f: {p.dtype for p in attached(**f)[1].parameters()} == {torch.bfloat16},
    ),
    "overrides": (
        {"query": {"rank": 4}},
        lambda **f: [d.rank for d in deltas(**f)] == [4, 2, 4, 2],
    ),
}


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Spec)])
def test_field_changes_something(name: str) -> None:
    value, shows = FLIPS[name]
    assert not shows()
    assert shows(**{name: value})


SETTINGS: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "rank": (4, lambda d: d.rank == 4),
    "alpha": (6.0, lambda d: d.scale == 3.0),
    "scale_rule": ("alpha/sqrt(rank)", lambda d: abs(d.scale - 32 / 2**0.5) < 1e-9),
    "dropout": (0.25, lambda d: d.dropout == 0.25),
    "init": ("orthogonal", lambda d: bool(abs(d.A[0] @ d.A[1]) < 1e-6)),
    "init_std": (9.0, lambda d: bool(d.A.std() > 5)),
}


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Settings)])
def test_override_changes_its_layers_alone(name: str) -> None:
    value, shows = SETTINGS[name]
    change = {name: value, **({"init": "gaussian"} if name == "init_std" else {})}
    found = attached(overrides={"layer.0.*.query": change})[1].deltas
    assert [n for n, d in found.items() if shows(d)] == [QUERY]


def test_first_override_counts() -> None:
    spec = Spec(overrides={"layer.0.*": {"rank": 2}, "query": {"rank": 3, "alpha": 1.0}})
    assert [spec.settings(f"layer.{i}.query").rank for i in (0, 1)] == [2, 3]
    assert [spec.settings(f"layer.{i}.query").alpha for i in (0, 1)] == [32.0, 1.0]


def test_spec_cannot_be_changed_from_outside() -> None:
    overrides = {"query": {"rank": 3}}
    spec = Spec(overrides=overrides)
    overrides["query"]["rank"] = 5
    assert spec.settings("query").rank == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.rank = 3


def test_spec_survives_its_dict() -> None:
    spec = Spec(
        rank=3,
        targets=["a", "b"],
        exclude="c.*",
        init="gaussian",
        init_std=0.5,
        full_modules="head",
        overrides={"a": {"rank": 2}},
        token_rows={"wte": [3, 1]},
    )
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_starts_have_their_spread(rank: int) -> None:
    def start(**fields: Any) -> torch.Tensor:
        model = nn.Sequential(nn.Linear(4096, 16, bias=False))
        return lorakit.attach(model, Spec(rank=rank, **fields)).deltas["0"].A.detach()

    kaiming, bound = start(init="kaiming"), 4096**-0.5
    assert 0.99 * bound < kaiming.abs().max() <= bound and abs(kaiming.mean()) < bound / 10
    gaussian = start(init="gaussian")
    assert abs(gaussian.mean()) < 0.1 / rank and abs(gaussian.std() * rank - 1) < 0.05
    gaussian = start(init="gaussian", init_std=0.02)
    assert abs(gaussian.mean()) < 0.002 and abs(gaussian.std() / 0.02 - 1) < 0.05
    orthogonal = start(init="orthogonal")
    product = (orthogonal @ orthogonal.T) * 3
    assert torch.allclose(
        product, torch.eye(rank), atol=1e-5
    )  # orthonormal rows, at the spread of kaiming
    assert abs(orthogonal.std() / kaiming.std() - 1) < 0.05
