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
from lorakit.deltas.base import Delta
from lorakit.inject.places import find_places
from lorakit.spec import Settings

from .models import bert

QUERY = "bert.encoder.layer.0.attention.self.query"
EMBEDDING = "bert.embeddings.word_embeddings"
ROOT_SCALE = 32 / 2**0.5  # of alpha 32 and rank 2


def attached(**fields: Any) -> Adapter:
    return lorakit.attach(bert(), Spec(**{"rank": 2, "targets": "qv", **fields}))


def deltas(**fields: Any) -> list[Any]:
    return list(attached(**fields).deltas.values())


def all_deltas(is_shown: Callable[[Any], bool]) -> Callable[..., bool]:
    """Return a check that attaches with some fields and looks at every delta."""

    def check(**fields: Any) -> bool:
        return all(is_shown(delta) for delta in deltas(**fields))

    return check


def parameters_of_tied_layers(**fields: Any) -> list[int]:
    """Return how many parameters an embedding and a head with its weight have."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    adapter = lorakit.attach(model, Spec(rank=2, targets=["0", "1"], **fields))
    return [len(list(delta.parameters())) for delta in adapter.deltas.values()]


def std_of_gaussian_is_large(**fields: Any) -> bool:
    return all(delta.A.std() > 5 for delta in deltas(**{"init": "gaussian", **fields}))


def query_has_parts(**fields: Any) -> bool:
    return f"{QUERY}.one" in find_places(bert(), fields.get("parts"))


# field -> (another value, a check that holds with it and not without)
FLIPS: dict[str, tuple[Any, Callable[..., bool]]] = {
    "delta": ("dora", all_deltas(lambda delta: type(delta).__name__ == "DoRA")),
    "rank": (3, all_deltas(lambda delta: delta.A.shape[0] == delta.B.shape[1] == 3)),
    "alpha": (5.0, all_deltas(lambda delta: delta.scale == 2.5)),
    "scale_rule": (
        "alpha/sqrt(rank)",
        all_deltas(lambda delta: abs(delta.scale - ROOT_SCALE) < 1e-9),
    ),
    "targets": (
        "mlp",
        lambda **fields: all(name.endswith("dense") for name in attached(**fields).deltas),
    ),
    "exclude": (["layer.0.*"], lambda **fields: len(deltas(**fields)) == 2),
    "dropout": (0.5, all_deltas(lambda delta: delta.dropout == 0.5)),
    "init": ("gaussian", all_deltas(lambda delta: 0.3 < delta.A.std() < 0.8)),
    "init_std": (9.0, std_of_gaussian_is_large),
    "bias": ("all", lambda **fields: f"{QUERY}.bias" in attached(**fields).full_parameters),
    "full_modules": (
        ["classifier"],
        lambda **fields: (
            list(attached(**fields).full_parameters) == ["classifier.weight", "classifier.bias"]
        ),
    ),
    "token_rows": ((3, 5), lambda **fields: EMBEDDING in attached(**fields).deltas),
    "parts": ({"query": {"one": 6, "two": 10}}, query_has_parts),
    "tie": (True, lambda **fields: parameters_of_tied_layers(**fields) == [2, 0]),
    "dtype": (
        "bfloat16",
        all_deltas(lambda delta: {p.dtype for p in delta.parameters()} == {torch.bfloat16}),
    ),
    "overrides": (
        {"query": {"rank": 4}},
        lambda **fields: [delta.rank for delta in deltas(**fields)] == [4, 2, 4, 2],
    ),
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Spec)])
def test_field_changes_something(name: str) -> None:
    value, shows = FLIPS[name]
    assert not shows()
    assert shows(**{name: value})


SETTINGS: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "rank": (4, lambda delta: delta.rank == 4),
    "alpha": (6.0, lambda delta: delta.scale == 3.0),
    "scale_rule": ("alpha/sqrt(rank)", lambda delta: abs(delta.scale - ROOT_SCALE) < 1e-9),
    "dropout": (0.25, lambda delta: delta.dropout == 0.25),
    "init": ("orthogonal", lambda delta: bool(abs(delta.A[0] @ delta.A[1]) < 1e-6)),
    "init_std": (9.0, lambda delta: bool(delta.A.std() > 5)),
    "pairs": (3, lambda delta: (delta.rank, delta.scale) == (6, 16.0)),
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Settings)])
def test_override_changes_its_layers_alone(name: str) -> None:
    value, shows = SETTINGS[name]
    change = {name: value}
    if name == "init_std":
        change["init"] = "gaussian"
    adapter = attached(overrides={"layer.0.*.query": change})
    assert [layer for layer, delta in adapter.deltas.items() if shows(delta)] == [QUERY]


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
        delta: Delta = lorakit.attach(model, Spec(rank=rank, **fields)).deltas["0"]
        return delta.get_parameter("A").detach()

    kaiming = start(init="kaiming")
    bound = 4096**-0.5
    assert 0.99 * bound < kaiming.abs().max() <= bound
    assert abs(kaiming.mean()) < bound / 10
    gaussian = start(init="gaussian")
    assert abs(gaussian.mean()) < 0.1 / rank
    assert abs(gaussian.std() * rank - 1) < 0.05
    gaussian = start(init="gaussian", init_std=0.02)
    assert abs(gaussian.mean()) < 0.002
    assert abs(gaussian.std() / 0.02 - 1) < 0.05
    orthogonal = start(init="orthogonal")
    # Orthonormal rows, with the spread of kaiming.
    product = (orthogonal @ orthogonal.T) * 3
    assert torch.allclose(product, torch.eye(rank), atol=1e-5)
    assert abs(orthogonal.std() / kaiming.std() - 1) < 0.05
