"""A smaller adapter is the best of its size, and an impossible size is refused."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from lorakit import Adapter, LorakitError, LowRank, Spec
from lorakit.algebra import resize
from lorakit.algebra.truncation import choose_ranks

from ..analysis.test_spectra import randn
from .test_combination import dense, dora, gap, pair


def test_the_residual_of_a_rank_is_the_tail_of_the_spectrum() -> None:
    adapter = pair()[0]
    wanted = dense((adapter, 1.0))
    outcome = resize(adapter, rank=2)
    assert outcome.ranks == {"q": 2, "v": 2}
    tail = float(torch.linalg.svdvals(wanted["q"])[2:].norm())
    assert gap(outcome.adapter, wanted) == pytest.approx(
        tail / sum(float(M.square().sum()) for M in wanted.values()) ** 0.5
    )
    assert (
        outcome.residual == pytest.approx(gap(outcome.adapter, wanted))
        and outcome.residuals["v"] < 1e-14
    )


def test_an_energy_is_kept_by_every_module() -> None:
    adapter = pair()[0]
    outcome = resize(adapter, energy=0.8)
    for name, M in dense((adapter, 1.0)).items():
        values = torch.linalg.svdvals(M).square()
        rank = outcome.ranks[name]
        assert values[:rank].sum() / values.sum() >= 0.8 > values[: rank - 1].sum() / values.sum()
    assert outcome.energy >= 0.8


def strengths(*values: float, out: int, inputs: int, seed: int) -> LowRank:
    left, right = (torch.linalg.qr(randn(n, len(values), seed=seed)).Q for n in (out, inputs))
    return LowRank(right.T.contiguous(), left * torch.tensor(values), alpha=float(len(values)))


def test_a_budget_is_spent_by_energy() -> None:
    """Against every way to spend it: with equal costs the greedy choice is the best."""
    spectra = {
        "a": torch.tensor([5.0, 1.0, 0.5]),
        "b": torch.tensor([3.0, 2.9]),
        "c": torch.tensor([0.1]),
    }
    for budget in (1, 2, 3, 4, 5, 6):
        found = choose_ranks(spectra, dict.fromkeys(spectra, 1), parameters=budget)
        kept = sum(float(values[: found[name]].square().sum()) for name, values in spectra.items())
        ways = [w for w in product(range(4), range(3), range(2)) if sum(w) <= budget]
        best = max(
            sum(float(v[:n].square().sum()) for v, n in zip(spectra.values(), way, strict=True))
            for way in ways
        )
        assert kept == pytest.approx(best) and sum(found.values()) <= budget
    deltas = {
        "wide": strengths(2.0, 1.9, out=30, inputs=30, seed=1),
        "narrow": strengths(1.5, 1.4, out=6, inputs=6, seed=2),
        "dead": strengths(1e-3, 1e-3, out=6, inputs=6, seed=3),
    }
    outcome = resize(Adapter(Spec(rank=2), deltas), parameters=84)
    assert outcome.ranks == {"wide": 1, "narrow": 2} and outcome.adapter.parameters_count == 84
    assert outcome.notes == ("left out, no direction of it is kept: dead",)
    total = 2.0**2 + 1.9**2 + 1.5**2 + 1.4**2 + 2e-6
    assert outcome.residual == pytest.approx(((1.9**2 + 2e-6) / total) ** 0.5, rel=1e-6)
    with pytest.raises(
        LorakitError,
        match="A budget of 11 parameters is below one direction of any module \\(12\\)",
    ):
        resize(Adapter(Spec(rank=2), deltas), parameters=11)


def test_full_parameters_and_provenance_stay() -> None:
    adapter = pair()[0]
    adapter.full_parameters["head.weight"] = nn.Parameter(torch.ones(2))
    adapter.provenance["base_fingerprint"] = "aa"
    smaller = resize(adapter, rank=1).adapter
    assert (
        torch.equal(smaller.full_parameters["head.weight"], torch.ones(2))
        and smaller.provenance["base_fingerprint"] == "aa"
    )
    assert smaller.provenance["resized"] == {"of": adapter.content_hash(), "rank": 1}


def test_the_change_of_a_dora_is_resized() -> None:
    model = nn.ModuleDict({"q": nn.Linear(12, 9, dtype=torch.float64)})
    W = model["q"].weight.detach()
    adapter = dora(W)
    outcome = resize(adapter, rank=5, base=model)
    tail = torch.linalg.svdvals(adapter.deltas["q"].matrix(W).detach())[5:].norm()
    assert gap(outcome.adapter, {"q": adapter.deltas["q"].matrix(W).detach()}) == pytest.approx(
        float(tail / adapter.deltas["q"].matrix(W).detach().norm())
    )
    with pytest.raises(LorakitError, match="q   is a DoRA"):
        resize(adapter, rank=1)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "no size is given: a rank, an energy, or a number of parameters is needed"),
    "two": (
        {"rank": 1, "parameters": 50},
        "rank and parameters are given: each sets the size, so give only one",
    ),
    "no change": (
        {"rank": 3},
        "rank 3 makes no module smaller: no change here has more than 3 directions.",
    ),
    "energy": ({"energy": 0.0}, "energy 0.0: a share above 0 and at most 1 is needed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_size_is_refused(case: str) -> None:
    settings, says = WRONG[case]
    with pytest.raises(LorakitError) as caught:
        resize(pair()[0], **settings)
    assert says in str(caught.value) and "Nothing was made." in str(caught.value)
