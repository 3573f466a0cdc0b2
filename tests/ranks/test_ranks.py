"""Ranks under a budget, selected layers, and parallel pairs of factors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit import Spec
from lorakit.errors import SpecError
from lorakit.ranks.allocate import SHAPES
from lorakit.train.config import RANKS

from ..laws.models import gpt2, llama
from ..laws.table import error, fill, randn

IDS = torch.arange(24).reshape(2, 12) * 7 % 50


def ranks(model: nn.Module, spec: Spec) -> dict[str, int]:
    return {n: d.rank for n, d in lorakit.attach(model, spec).deltas.items()}


def test_the_options_of_a_run_list_every_shape() -> None:
    assert (*SHAPES, "explained-variance", "suggested") == RANKS


@pytest.mark.parametrize("budget", [None, 700, 1234, 9000])
@pytest.mark.parametrize(
    "shape", [*SHAPES, lambda t: 1 + t**2, {"mlp.*": 3.0, "*": 1.0}, "explained-variance"]
)
@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_budget_is_kept_within_one_rank(make: Any, shape: Any, budget: int | None) -> None:
    spec = Spec(rank=2, alpha=6.0)
    batches = [{"input_ids": IDS}] if shape == "explained-variance" else None
    limit = budget or lorakit.attach(make(), spec).parameters_count
    adapter = lorakit.attach(
        make(), lorakit.allocate_ranks(make(), spec, shape=shape, budget=budget, batches=batches)
    )
    assert adapter.parameters_count <= limit
    free = [sum(d.shape) for d in adapter.deltas.values() if d.rank < min(d.shape)]
    assert not free or limit - adapter.parameters_count < min(free)
    assert all(d.scale == pytest.approx(3.0, rel=1e-9) for d in adapter.deltas.values())


def test_shapes_are_those_of_their_names() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    for shape, want in {
        "even": [8, 8, 8, 8],
        "bottom-heavy": [12, 12, 4, 4],
        "top-heavy": [4, 4, 12, 12],
        "linear": [4, 7, 9, 12],
        "linear-falling": [12, 9, 7, 4],
    }.items():
        spec = lorakit.allocate_ranks(model, Spec(rank=8), shape=shape)
        assert [spec.settings(str(i)).rank for i in range(4)] == want
    weights = {"0": 1.0, "1": 2.0, "2": 1.0, "3": 4.0}
    assert [
        lorakit.allocate_ranks(model, Spec(rank=8), shape=weights).settings(n).rank for n in weights
    ] == [4, 8, 4, 16]


def test_explained_variance_gives_rank_to_rich_inputs() -> None:
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    U = torch.linalg.qr(randn(16, 16))[0].float()
    model[0].weight.data = U[:, :1] @ U[:1] + 1e-3 * U  # its outputs have one direction
    spec = lorakit.allocate_ranks(
        model, Spec(rank=4), shape="explained-variance", batches=[randn(64, 16).float()]
    )
    assert spec.settings("0").rank > 5 > spec.settings("1").rank >= 1


def test_the_layers_with_the_largest_gradients_are_selected() -> None:
    model, x = nn.ModuleList(nn.Linear(8, 8) for _ in range(4)), randn(5, 8).float()

    def loss(net: Any) -> Tensor:
        return sum(w * net[i](x).square().sum() for i, w in enumerate((0.1, 3.0, 0.01, 2.0)))  # type: ignore[return-value]

    spec = Spec(rank=2, overrides={"3": {"dropout": 0.5}, "0": {"dropout": 0.1}})
    chosen = lorakit.select_layers(model, spec, [loss])
    assert chosen.targets == ("1", "3") and ranks(model, chosen) == {"1": 2, "3": 2}
    assert chosen.settings("3").dropout == 0.5
    assert lorakit.select_layers(model, spec, [loss], budget=40).targets == ("1",)


@pytest.mark.parametrize("pairs", [2, 3])
def test_parallel_pairs_are_one_of_their_ranks_together(pairs: int) -> None:
    """k pairs of rank r add up to one of rank k r and the same scale, in what comes out and in
    every gradient.
    """
    model, x = nn.Sequential(nn.Linear(12, 10)).double(), randn(7, 12)
    several = [
        fill(lorakit.attach(model, Spec(rank=2, alpha=6.0, dtype="float64"), name=f"p{k}"), seed=k)
        for k in range(pairs)
    ]
    lorakit.enable(model, [f"p{k}" for k in range(pairs)])
    y = model(x)
    y.square().sum().backward()
    whole = nn.Sequential(nn.Linear(12, 10)).double()
    whole.load_state_dict({k: v for k, v in model.state_dict().items() if "lorakit" not in k})
    one = lorakit.attach(whole, Spec(rank=2 * pairs, alpha=6.0 * pairs, dtype="float64")).deltas[
        "0"
    ]
    one.A.data = torch.cat([a.deltas["0"].A.detach() for a in several])
    one.B.data = torch.cat([a.deltas["0"].B.detach() for a in several], 1)
    again = whole(x)
    again.square().sum().backward()
    assert error(again, y.detach()) < 1e-12
    assert error(one.A.grad, torch.cat([a.deltas["0"].A.grad for a in several])) < 1e-10
    assert error(one.B.grad, torch.cat([a.deltas["0"].B.grad for a in several], 1)) < 1e-10


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "shape": (
        {"shape": "botom-heavy"},
        "shape 'botom-heavy' is none of even, bottom-heavy, top-heavy, linear, linear-falling, "
        "explained-variance. Did you mean 'bottom-heavy' or 'top-heavy'?",
    ),
    "budget": ({"budget": 10}, "A budget of 10 values is too small: rank 1 of 2 layers takes 32."),
    "no number": ({"budget": 1.5}, "budget: a whole number of at least 1 is needed, got 1.5."),
    "weights": (
        {"shape": {"0": 1.0, "q": 2.0}},
        "2 faults in the shape.\n  'q'   0 layers\n  1   no pattern gives it a weight",
    ),
    "negative": ({"shape": lambda t: -t}, "1   weight -1.0 is not a number above 0"),
    "needs batches": ({"shape": "explained-variance"}, "shape 'explained-variance' needs data."),
    "needs none": ({"batches": [1]}, "batches are given, but shape 'even' uses none."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_request_is_refused(case: str) -> None:
    more, text = REFUSED[case]
    with pytest.raises(SpecError) as caught:
        lorakit.allocate_ranks(
            nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), Spec(rank=2), **more
        )
    assert text in str(caught.value)
