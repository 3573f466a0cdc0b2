"""AdaLoRA's budget holds, moves between layers, and a resumed run ends with the same bits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from lorakit.adapter import Adapter
from lorakit.errors import SpecError
from lorakit.spec import Spec
from lorakit.train import loop
from lorakit.train.budget import Budget
from lorakit.train.config import TrainSpec
from lorakit.train.run import train_adapter

from ..conftest import sentences


def task() -> tuple[nn.Sequential, Adapter, torch.Tensor, torch.Tensor]:
    """A net whose last layer alone has something to learn, of four directions; the others nothing
    that is worth a rank.
    """
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(12, 12, bias=False) for _ in range(4)))
    for layer in net:
        nn.init.orthogonal_(layer.weight)
    x = torch.randn(64, 12)
    y = net(x).detach() @ (torch.eye(12) + 2 * torch.randn(12, 4) @ torch.randn(4, 12) / 12)
    adapter = lorakit.attach(net, Spec(delta="adalora", rank=4, alpha=8))
    return net, adapter, x, y


def trained(steps: int = 120, **more: Any) -> tuple[Adapter, Budget, list[int], list[float]]:
    net, adapter, x, y = task()
    budget = Budget(adapter, steps, **{"rank": 2, "every": 1, **more})
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=2e-2, weight_decay=0.0)
    counts, losses = [], []
    for _ in range(steps):
        loss = (net(x) - y).square().mean()
        loss.backward()
        budget.step(optimizer)
        optimizer.zero_grad()
        counts.append(sum(budget.ranks().values()))
        losses.append(loss.item())
    return adapter, budget, counts, losses


@pytest.mark.slow
def test_the_budget_holds_within_one_rank_at_every_step() -> None:
    _, budget, counts, losses = trained()
    assert all(abs(count - budget.size(step)) <= 1 for step, count in enumerate(counts, 1)), counts
    assert counts[0] == 16 and counts[-1] == 8
    assert losses[-1] < losses[0] / 2


@pytest.mark.slow
def test_ranks_move_between_layers_and_are_fixed_at_the_end() -> None:
    adapter, budget, *_ = trained()
    ranks = budget.ranks()
    assert max(ranks.values()) > 2 > min(ranks.values()), ranks
    budget.prune()
    assert {n: d.rank for n, d in adapter.deltas.items()} == ranks


@pytest.mark.slow
def test_the_last_decision_holds_after_the_end() -> None:
    _, budget, counts, _ = trained(every=10)
    assert counts[budget.end - 1 :] == [8] * (120 - budget.end + 1)


def test_a_schedule_that_falls_within_one_step_is_kept() -> None:
    _, budget, counts, _ = trained(2, warmup=0.5, final=0.4)
    assert budget.begin == budget.end == 1
    assert counts == [16, 8] and budget.is_settled


@pytest.mark.slow
def test_the_orthogonality_term_makes_rows_more_orthogonal() -> None:
    def off(weight: float) -> float:
        adapter, *_ = trained(orthogonality=weight, rank=4)
        grams = [d.A.detach() @ d.A.detach().T for d in adapter.deltas.values()]
        return sum(float((g - torch.eye(4)).norm()) for g in grams)

    assert off(5.0) < off(0.0) / 2


def test_a_step_that_is_not_finite_scores_nothing() -> None:
    net, adapter, x, y = task()
    budget = Budget(adapter, 10)
    (net(x) - y).square().mean().backward()
    next(adapter.parameters()).grad[0, 0] = float("inf")
    budget.step(type("Skips", (), {"step": lambda self: None})())
    assert budget.mean == {} and budget.done == 1


def test_what_cannot_be_kept_is_refused() -> None:
    _, adapter, *_ = task()
    with pytest.raises(SpecError) as caught:
        Budget(adapter, 10, rank=5, warmup=0.6, final=0.5, every=0)
    assert caught.value.faults == [
        "rank 5: a number from 1 to the initial rank, 4, is needed",
        "warmup 0.6 and final 0.5: shares that leave some steps between them are needed",
        "every 0, orthogonality 0.1, smoothing 0.85: out of range",
    ]
    plain = lorakit.attach(nn.Sequential(nn.Linear(4, 4)), Spec(rank=2))
    with pytest.raises(SpecError, match="0   has delta 'lora', not 'adalora'"):
        Budget(plain, 10)


@pytest.fixture
def settings(tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    data = tmp_path / "text.jsonl"
    data.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences(120)))
    return {
        "model": str(tiny_llama),
        "data": str(data),
        "output": str(tmp_path / "out"),
        "batch_size": 8,
        "steps": 20,
        "lr": 5e-3,
        "threads": 1,
        "budget_every": 2,
        "target_rank": 2,
    }


@pytest.mark.slow
def test_a_run_ends_within_its_budget_and_resumed_equals_straight(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Spec(rank=4, delta="adalora")
    report = train_adapter(TrainSpec(**{**settings, "output": str(tmp_path / "straight")}), spec)
    straight = Adapter.load(tmp_path / "straight")
    ranks = [delta.rank for delta in straight.deltas.values()]
    assert sum(ranks) == 2 * len(ranks) and len(set(ranks)) > 1
    assert report["best_step"] is None or report["best_step"] >= 14
    real = loop.train_step

    def stop_after_nine(session: loop.Session) -> None:
        real(session)
        if session.progress.step == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stop_after_nine)
        with pytest.raises(KeyboardInterrupt):
            train_adapter(TrainSpec(**settings, checkpoint_every=4), spec)
    train_adapter(TrainSpec(**settings, checkpoint_every=4, resume=True), spec)
    assert Adapter.load(tmp_path / "out") == straight


@pytest.mark.slow
def test_a_budget_without_adalora_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        SpecError,
        match="target_rank: only delta='adalora' has a budget of ranks, the spec has 'lora'",
    ):
        train_adapter(TrainSpec(**settings), Spec(rank=4))
    with pytest.raises(SpecError, match="rank 9: a number from 1 to the initial rank, 4"):
        train_adapter(TrainSpec(**{**settings, "target_rank": 9}), Spec(rank=4, delta="adalora"))
    assert not (tmp_path / "out").exists()
