"""Parallel pairs of factors on one module, and layers that are named by ranges of numbers."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from lorakit import Adapter, Spec
from lorakit.errors import SpecError
from lorakit.linalg import singular_values
from lorakit.patterns import PatternTable, matches
from lorakit.plan.meta_adapter import attach_on_meta
from lorakit.ranks.allocate import allocate_ranks

from ..laws.table import fill

SPEC = Spec(rank=4, alpha=6.0, targets=["*"], overrides={"0": {"pairs": 3}}, dtype="float64")


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, 16)).double()


def inputs() -> torch.Tensor:
    return torch.randn(5, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def separate(joined: Any) -> list[dict[str, torch.Tensor]]:
    """Return the factors of each pair."""
    A, B = joined.A.detach().split(4), joined.B.detach().split(4, dim=1)
    return [{"A": rows.clone(), "B": columns.clone()} for rows, columns in zip(A, B, strict=True)]


@pytest.mark.parametrize("rule", ["alpha/rank", "alpha/sqrt(rank)"])
def test_pairs_add_up_as_adapters_of_one_pair_do(rule: str) -> None:
    spec = Spec(**{**SPEC.to_dict(), "scale_rule": rule})
    joined, apart = network(), network()
    delta: Any = fill(lorakit.attach(joined, spec)).deltas["0"]
    single: Any = lorakit.attached(joined)["default"].deltas["2"]
    assert (delta.rank, single.rank) == (12, 4) and delta.scale == pytest.approx(single.scale)
    change = torch.zeros(20, 24, dtype=torch.float64)
    adapters: list[Any] = []
    for number, factors in enumerate(separate(delta)):
        adapter = lorakit.attach(
            apart, Spec(**{**spec.to_dict(), "overrides": {}}), name=f"{number}"
        )
        adapter.deltas["0"].load_state_dict(factors)
        if number == 0:
            adapter.deltas["2"].load_state_dict(single.state_dict())
        change += single.scale * factors["B"] @ factors["A"]
        adapters.append(adapter)
    lorakit.enable(apart, ["0", "1", "2"])
    assert torch.allclose(delta.matrix(), change, rtol=1e-12, atol=1e-12)
    x = inputs()
    assert torch.allclose(joined(x), apart(x), rtol=1e-12, atol=1e-12)
    joined(x).square().sum().backward()
    apart(x).square().sum().backward()
    own: list[Any] = [adapter.deltas["0"] for adapter in adapters]
    assert torch.allclose(delta.A.grad, torch.cat([pair.A.grad for pair in own]))
    assert torch.allclose(delta.B.grad, torch.cat([pair.B.grad for pair in own], dim=1))


def test_each_layer_has_the_parameters_that_the_plan_counts() -> None:
    counts = {"0": 3 * 4 * (24 + 20), "2": 4 * (20 + 16)}
    with torch.device("meta"):
        planned = attach_on_meta(network(), SPEC)
    for adapter in (lorakit.attach(network(), SPEC), planned):
        found = {
            name: sum(parameter.numel() for parameter in delta.parameters())
            for name, delta in adapter.deltas.items()
        }
        assert found == counts and adapter.parameters_count == sum(counts.values())


def test_each_pair_is_drawn_by_itself() -> None:
    def start(init: str) -> torch.Tensor:
        wide = nn.Sequential(nn.Linear(4096, 64))
        spec = Spec(rank=4, init=init, overrides={"0": {"pairs": 3}})
        return lorakit.attach(wide, spec).deltas["0"].get_parameter("A").detach()

    assert start("gaussian").std().item() == pytest.approx(1 / 4, rel=0.05)
    rows = start("orthogonal")
    products = rows @ rows.T * 3
    for pair in range(3):
        own = slice(4 * pair, 4 * pair + 4)
        assert torch.allclose(products[own, own], torch.eye(4), atol=1e-5)
    assert products[:4, 4:].abs().max() > 1e-3


def test_pairs_are_written_as_one_and_read_again(tmp_path: Path) -> None:
    model = network()
    adapter = fill(lorakit.attach(model, SPEC))
    read = Adapter.load(adapter.save(tmp_path))
    assert read == adapter and read.spec.overrides["0"] == {"pairs": 3}
    other = network()
    lorakit.attach(other, read)
    assert torch.equal(other(inputs()), model(inputs()))


@pytest.mark.slow
def test_peft_computes_the_same_outputs(tmp_path: Path) -> None:
    from peft import PeftModel

    model = network()
    fill(lorakit.attach(model, SPEC)).save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        theirs = PeftModel.from_pretrained(network(), str(tmp_path))  # type: ignore[arg-type]
    assert torch.allclose(theirs(inputs()), model(inputs()), rtol=1e-5)
    assert (theirs(inputs()) - network()(inputs())).abs().max() > 0.1


def test_pairs_that_cannot_be_are_refused() -> None:
    asked = {"0": {"pairs": 0}, "1": {"pairs": 2, "init": "pissa"}, "2": {"piars": 2}}
    with pytest.raises(SpecError) as caught:
        Spec(overrides=asked)
    text = str(caught.value)
    assert "overrides['0'].pairs: a whole number of at least 1 is needed, got 0" in text
    assert "overrides['1'].pairs: init 'pissa' computes one pair" in text
    assert "'piars' cannot be overridden; did you mean 'pairs'?" in text
    with pytest.raises(SpecError, match=r"overrides\['0'\].pairs: delta 'vera' has no pairs"):
        Spec(delta="vera", overrides={"0": {"pairs": 2}})
    too_many = Spec(rank=4, targets=["*"], overrides={"0": {"pairs": 6}})
    with pytest.raises(SpecError, match=r"0   rank 24 is above min\(in, out\) = 20"):
        lorakit.attach(network(), too_many)


def test_a_rank_that_is_allocated_is_that_of_all_pairs() -> None:
    spec = allocate_ranks(network(), SPEC, shape="even")
    budget = 12 * (24 + 20) + 4 * (20 + 16)
    ranks = {name: spec.settings(name).rank for name in ("0", "2")}
    assert "pairs" not in spec.override_for("0")
    assert abs(ranks["0"] * 44 + ranks["2"] * 36 - budget) <= 44


def test_dora_has_pairs() -> None:
    spec = Spec(**{**SPEC.to_dict(), "delta": "dora"})
    model = network()
    delta: Any = fill(lorakit.attach(model, spec)).deltas["0"]
    assert delta.rank == 12 and len(delta.magnitude) == 20
    values = singular_values(delta.A.detach(), delta.B.detach(), 1.0)
    assert int((values > 1e-9 * values[0]).sum()) == 12


LAYERS = [f"model.layers.{i}.q_proj" for i in range(14)]
RANGES = {
    "layers.{0..3}.q_proj": [0, 1, 2, 3],
    "layers.{8..11}.*": [8, 9, 10, 11],
    "layers.{12..99}.q_proj": [12, 13],
    "layers.{3..1}.*": [],
    "layers.[0-3].*": [0, 1, 2, 3],
    "layers.1[0-9].*": [10, 11, 12, 13],
    "layers.1?.q_proj": [10, 11, 12, 13],
    "*.{2..2}.*": [2],
    "{0..5}": [],
}


@pytest.mark.parametrize("pattern", RANGES)
def test_a_range_stands_for_its_whole_numbers(pattern: str) -> None:
    wanted = [LAYERS[i] for i in RANGES[pattern]]
    assert [name for name in LAYERS if matches(pattern, name)] == wanted
    table = PatternTable([pattern])
    assert [name for name in LAYERS if table.find(name)] == wanted


def test_layers_are_chosen_left_out_and_overridden_by_ranges() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(12))})
    spec = Spec(
        rank=2,
        targets=["layers.{1..10}"],
        exclude=["layers.{5..6}"],
        overrides={"layers.{1..4}": {"rank": 1, "pairs": 3}, "layers.[7-9]": {"rank": 4}},
    )
    adapter = lorakit.attach(model, spec)
    ranks = {int(name.rpartition(".")[2]): delta.rank for name, delta in adapter.deltas.items()}
    assert ranks == {1: 3, 2: 3, 3: 3, 4: 3, 7: 4, 8: 4, 9: 4, 10: 2}
    lorakit.detach(model)
    by_expression = lorakit.select(model, r"layers\.([0-9]|1[01])", exclude=r"layers\.1\d")
    assert list(by_expression) == [f"layers.{i}" for i in range(10)]
