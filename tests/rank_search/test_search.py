"""On a task with a known rank the search finds it, gives its reason, and costs little."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lorakit
from lorakit import Adapter, Spec
from lorakit.data.encode import Example
from lorakit.deltas.base import LowRank
from lorakit.deltas.token_rows import TokenRows
from lorakit.errors import AdapterMismatch, DataError, SpecError
from lorakit.evaluate.score import Scores, evaluate
from lorakit.rank_search.config import RankSearchSpec
from lorakit.rank_search.evidence import (
    HIGHER_IS_BETTER,
    RowScores,
    choose_rank,
    is_reached,
    scores_by_row,
)
from lorakit.rank_search.grid import search_grid
from lorakit.rank_search.grow import extend, grow
from lorakit.rank_search.truncate import truncate
from lorakit.tasks.metrics import classification
from lorakit.train.log import Log
from lorakit.train.loop import fit

from . import planted

ALL = tuple(range(1, 8))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2, 3, 6])
def test_truncation_finds_the_planted_rank(rank: int, tmp_path: Path) -> None:
    result = truncate(planted.job(rank, tmp_path), RankSearchSpec(rank=8, try_ranks=ALL))
    assert result.choice.rank == rank == result.adapter.deltas["middle"].rank
    best = result.choice.at(result.choice.best)
    assert result.choice.at(rank).behind <= best.error
    assert all(point.low < point.metric < point.high for point in result.choice.points)
    if rank > 1:
        assert result.choice.at(rank - 1).behind_low > 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [2, 4])
def test_growing_stops_at_the_planted_rank(rank: int, tmp_path: Path) -> None:
    job = planted.job(rank, tmp_path, highest=1, steps=1200)
    result = grow(job, RankSearchSpec(way="grow", rank=8, try_ranks=ALL))
    assert result.choice.rank == rank == result.adapter.deltas["middle"].rank
    assert [point.rank for point in result.choice.points] == list(range(1, rank + 2))
    reason = f"Rank {rank + 1} is no better than rank {rank} by more than one standard error"
    assert reason in result.choice.reason


@pytest.mark.slow
def test_growing_stops_at_what_is_good_enough_and_at_the_end(tmp_path: Path) -> None:
    goal = RankSearchSpec(way="grow", rank=4, good_enough=3.3)
    choice = grow(planted.job(4, tmp_path / "a", highest=1, steps=300), goal).choice
    assert choice.rank == 2
    assert choice.reason == "Rank 2 reached the goal, loss 3.3."
    no_goal = RankSearchSpec(way="grow", rank=4)
    choice = grow(planted.job(6, tmp_path / "b", highest=1, steps=300), no_goal).choice
    assert choice.rank == 4
    assert choice.reason == "The highest rank, 4, was reached while it still helped."


@pytest.mark.slow
def test_the_small_adapter_has_the_metric_of_the_curve(tmp_path: Path) -> None:
    job = planted.job(2, tmp_path)
    result = truncate(job, RankSearchSpec(rank=8, try_ranks=(1, 2), all_rows=True))
    model = planted.Network()
    lorakit.attach(model, result.adapter, trainable=False, any_base=True)
    loss = evaluate(model, job.held_out, "causal-lm", pad=0).metrics["loss"]
    by_module = result.facts["by_module"]
    metric = by_module["metric"] if by_module["taken"] else result.choice.at(2).metric
    assert loss == pytest.approx(metric, rel=1e-6)
    assert not lorakit.attached(job.model)


@pytest.mark.slow
def test_training_improves_a_cut_adapter(tmp_path: Path) -> None:
    """Below the planted rank a cut is far from the best of its rank; a few steps help."""
    losses: list[float] = []
    for share in (0.0, 0.3):
        search = RankSearchSpec(rank=8, try_ranks=(1, 3), refine=share)
        result = truncate(planted.job(6, tmp_path / str(share)), search)
        assert result.facts["refined_steps"] == round(share * 100)
        losses.append(result.choice.at(3).metric)
    assert losses[1] < losses[0] - 0.01, losses


@pytest.mark.slow
def test_fewer_rows_are_measured_where_all_would_cost_too_much(tmp_path: Path) -> None:
    search = RankSearchSpec(rank=8, refine=0.0)
    few = truncate(planted.job(1, tmp_path / "a", steps=20), search)
    assert 30 <= few.facts["rows_measured"] < 250
    search = RankSearchSpec(rank=8, refine=0.0, all_rows=True)
    every = truncate(planted.job(1, tmp_path / "b", steps=20), search)
    assert every.facts["rows_measured"] == 250


@pytest.mark.slow
def test_the_time_of_one_run_is_that_of_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = planted.job(1, tmp_path, steps=3)
    now, save = [0.0], Adapter.save

    def read_clock() -> float:
        now[0] += 1
        return now[0]

    def save_slowly(self: Adapter, folder: Path) -> None:
        now[0] += 1000 if folder == job.output else 0
        save(self, folder)

    clock = SimpleNamespace(perf_counter=read_clock)
    monkeypatch.setattr("lorakit.rank_search.truncate.time", clock)
    monkeypatch.setattr(Adapter, "save", save_slowly)
    facts = truncate(job, RankSearchSpec(rank=8, refine=0.0)).facts
    assert facts["seconds_of_one_run"] == 1
    assert facts["seconds"] > 1000


@pytest.mark.slow
def test_ranks_by_module_take_no_more_parameters(tmp_path: Path) -> None:
    job = planted.job(2, tmp_path, steps=100)
    lorakit.detach(job.model)
    adapter = lorakit.attach(job.model, Spec(rank=8, alpha=8, targets=("middle", "out")))
    result = truncate(replace(job, adapter=adapter), RankSearchSpec(rank=8, try_ranks=(1, 2, 3)))
    assert next(iter(result.facts)) == "by_module"
    by_module = result.facts["by_module"]
    uniform = result.details[result.choice.rank]
    assert by_module["parameters"] <= uniform["parameters"]
    assert set(by_module["ranks"]) == {"middle", "out"}
    ranks = dict.fromkeys(by_module["ranks"], result.choice.rank)
    if by_module["taken"]:
        ranks = by_module["ranks"]
    assert {name: delta.rank for name, delta in result.adapter.deltas.items()} == ranks


def rows(*means: float, count: int = 400, seed: int = 0) -> dict[int, RowScores]:
    noise = np.random.default_rng(seed).normal(size=count)
    return {2**i: RowScores(noise + mean, np.ones(count)) for i, mean in enumerate(means)}


@pytest.mark.slow
def test_the_smallest_within_one_standard_error_of_the_best_is_taken() -> None:
    error = 1 / 400**0.5
    assert choose_rank(rows(1.0, 0.3, 0.2 * error, 0.0)).rank == 4
    assert choose_rank(rows(0.8 * error, 0.3, 0.0)).rank == 1
    assert choose_rank(rows(1.5 * error, 1.3 * error, 0.0)).rank == 4
    assert choose_rank(rows(0.0, 1.0, 0.5 * error), "accuracy").best == 2


@pytest.mark.slow
def test_the_reason_says_that_the_best_rank_is_the_highest_tried() -> None:
    advice = "Rank 4 is the highest that was tried: a higher one may be better still."
    assert choose_rank(rows(1.0, 0.5, 0.0)).reason.endswith(advice)
    assert "highest" not in choose_rank(rows(1.0, 0.0, 0.5)).reason
    assert "highest" not in choose_rank(rows(0.0, 0.0)).reason


@pytest.mark.slow
def test_of_cut_adapters_the_rows_must_prove_it() -> None:
    """Rank 1 is within one standard error, but the difference is uncertain, or the rows are few."""
    noise = np.random.default_rng(0).normal(size=(2, 400))
    noise -= noise.mean(1, keepdims=True)
    counts = np.ones(400)
    uncertain = {1: RowScores(noise[0] + 0.02, counts), 2: RowScores(noise[1], counts)}
    assert choose_rank(uncertain).rank == 1
    choice = choose_rank(uncertain, held_out=400)
    reason = (
        "rank 1 is 0.0200 worse, but these rows do not show that it is within the standard "
        "error of all 400"
    )
    assert choice.rank == 2
    assert reason in choice.reason
    certain = rows(0.02, 0.0)
    assert choose_rank(certain, held_out=400).rank == 1
    assert choose_rank(certain, held_out=40_000).rank == 2


def test_for_metrics_of_classes_the_losses_must_prove_it() -> None:
    right = np.ones(100)
    losses = np.random.default_rng(0).normal(1, 0.3, size=100)
    gaps = {1: 0.1, 2: 0.001, 4: 0.0}
    scores = {rank: RowScores(right, right, {}, losses + gap) for rank, gap in gaps.items()}
    assert choose_rank(scores, "accuracy").rank == 1
    assert choose_rank(scores, "accuracy", held_out=100).rank == 2


def test_without_losses_a_metric_of_classes_proves_nothing() -> None:
    right = np.ones(100)
    scores = {rank: RowScores(right, right) for rank in (1, 2)}
    with pytest.raises(
        SpecError,
        match="losses: a metric of classes is proven by the loss of each row, and it is missing",
    ):
        choose_rank(scores, "accuracy", held_out=100)


@pytest.mark.slow
def test_intervals_are_those_of_the_rows() -> None:
    choice = choose_rank(rows(0.5, 0.0, count=1000))
    at = choice.at(2)
    assert at.error == pytest.approx(1000**-0.5, rel=0.1)
    assert at.high - at.low == pytest.approx(2 * 1.96 * at.error, rel=0.1)
    # The same noise on both: the difference is known exactly, though neither metric is.
    assert choice.at(1).behind_low == pytest.approx(0.5) == choice.at(1).behind_high


@pytest.mark.slow
def test_the_reason_says_that_a_difference_is_real() -> None:
    assert "On the same rows the difference is real" in choose_rank(rows(0.02, 0.0)).reason
    assert "real" not in choose_rank(rows(0.0, 0.0)).reason


@pytest.mark.slow
def test_a_long_text_is_one_row(tmp_path: Path) -> None:
    job = planted.job(1, tmp_path)
    examples = [replace(e, row=i // 5) for i, e in enumerate(job.held_out[:20])]
    scores = evaluate(job.model, examples, "causal-lm", pad=0)
    row_scores = scores_by_row(scores, examples, "loss")
    assert row_scores.totals.shape == (4,)
    assert row_scores.counts.sum() == 20 * planted.LONG
    assert row_scores.metric == pytest.approx(scores.metrics["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "regress"])
def test_the_loss_of_each_row_adds_up(task: str, tmp_path: Path) -> None:
    class Head(planted.Network):
        def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
            output = super().forward(input_ids)
            output.logits = output.logits[:, -1, : 3 if task == "classify" else 1]
            return output

    texts = planted.rows(planted.Network(), 10, 0)
    examples = [replace(text, labels=[], target=i % 3) for i, text in enumerate(texts)]
    scores = evaluate(Head(), examples, task, pad=0, labels="abc", batch_size=4)
    assert sum(scores.losses) / 10 == pytest.approx(scores.metrics["loss"])
    if task == "classify":
        by_row = scores_by_row(scores, examples, "accuracy")
        assert by_row.metric == pytest.approx(scores.metrics["accuracy"])
    else:
        message = "accuracy is counted where rows have classes; here it is the loss"
        with pytest.raises(SpecError, match=message):
            scores_by_row(scores, examples, "accuracy")


def test_an_extended_adapter_does_the_same() -> None:
    def adapter(rank: int) -> Adapter:
        delta = LowRank(torch.randn(rank, 6), torch.randn(5, rank), alpha=8.0)
        return Adapter(Spec(rank=rank), {"q": delta})

    small = adapter(2)
    large = adapter(4)
    extend(small, large)
    torch.testing.assert_close(large.deltas["q"].matrix(), small.deltas["q"].matrix())
    message = r"q   has rank 4, and 2 in the larger one\nNothing was changed\."
    with pytest.raises(AdapterMismatch, match=message):
        extend(large, small)


def test_rows_of_tokens_are_extended_as_they_are() -> None:
    tokens = torch.tensor([3, 5])
    small, large = (
        Adapter(Spec(rank=rank), {"embed": TokenRows(torch.randn(2, 4), tokens)}) for rank in (1, 2)
    )
    extend(small, large)
    assert torch.equal(large.deltas["embed"].new, small.deltas["embed"].new)


@pytest.mark.parametrize(
    "goal", [(0.5, 0.6, "loss", True), (0.5, 0.6, "accuracy", False), (0.5, 0.5, "accuracy", True)]
)
def test_good_enough_follows_the_metric(goal: tuple[float, float, str, bool]) -> None:
    assert is_reached(*goal[:3]) is goal[3]


@pytest.mark.slow
@pytest.mark.parametrize("metric", HIGHER_IS_BETTER)
def test_what_is_counted_by_row_is_the_metric_of_all(metric: str) -> None:
    """3 classes for accuracy, 2 for the others; without any row of the class nothing is divided."""
    draw = np.random.default_rng(0)
    classes = 3 if metric == "accuracy" else 2
    true = draw.integers(classes, size=40).tolist()
    predicted = draw.integers(classes, size=40).tolist()
    losses = [0.0] * 40
    metrics = classification(true, predicted, classes)
    examples = [Example(ids=[1], row=i, target=float(label)) for i, label in enumerate(true)]
    scores = Scores(metrics, [(label, 1.0) for label in predicted], losses)
    by_row = scores_by_row(scores, examples, metric)
    assert by_row.metric == pytest.approx(metrics[metric])
    assert by_row.metrics is metrics
    choice = choose_rank({1: by_row, 2: by_row}, metric)
    assert choice.points[0].error == pytest.approx(0.08, abs=0.04)
    zeros = [replace(example, target=0.0) for example in examples]
    none = scores_by_row(Scores(metrics, [(0, 1.0)] * 40, losses), zeros, metric)
    expected = 1.0 if metric == "accuracy" else 0.0
    assert choose_rank({1: none}, metric).points[0].metric == expected


@pytest.mark.slow
def test_a_grid_trains_every_rank_as_a_run_by_itself(tmp_path: Path) -> None:
    job = planted.job(2, tmp_path, highest=1, steps=100)
    result = search_grid(job, RankSearchSpec(way="grid", rank=4, try_ranks=(1, 2)))
    assert result.choice.rank == 2
    assert result.facts["steps"] == 300
    alone = planted.job(2, tmp_path / "alone", highest=2, steps=100)
    fit(alone, lambda start: Log(tmp_path / "metrics.jsonl", start, 100, quiet=True))
    found = result.adapter.deltas["middle"].matrix()
    assert torch.equal(found, alone.adapter.deltas["middle"].matrix())
    losses = [detail["metrics"]["loss"] for detail in result.details.values()]
    assert losses == [point.metric for point in result.choice.points]


@pytest.mark.slow
def test_a_grid_takes_what_cannot_be_cut(tmp_path: Path) -> None:
    job = planted.job(1, tmp_path, steps=3)
    lorakit.detach(job.model)
    adapter = lorakit.attach(job.model, Spec(rank=1, delta="dora", targets=("middle",)))
    result = search_grid(replace(job, adapter=adapter), RankSearchSpec(way="grid", rank=2))
    assert result.adapter.spec.delta == "dora"
    assert [point.rank for point in result.choice.points] == [1, 2]


WRONG = {
    "rank: a whole number of at least 2 is needed, got 1": {"rank": 1},
    "try_ranks: whole numbers from 1 to below the highest, 8, are needed, got 9": {
        "rank": 8,
        "try_ranks": (4, 9),
    },
    "try_ranks: whole numbers from 1 to below the highest, 8, are needed, got 'x'": {
        "rank": 8,
        "try_ranks": ("x",),
    },
    "refine: a share from 0 to 1 is needed, got 2": {"refine": 2},
    "threshold: a share above 0 and below 1 is needed, got 1.0": {
        "way": "threshold",
        "threshold": 1.0,
    },
    "good_enough: --way truncate does not use it": {"good_enough": 1.0},
    "refine: --way grow does not use it": {"way": "grow", "refine": 0.5},
    "plot: --way advice does not use it": {"way": "advice", "plot": "x.png"},
    "refine: --way grid does not use it": {"way": "grid", "refine": 0.5},
    "way: 'guess' is none of truncate, grid, grow, threshold, advice": {"way": "guess"},
}


@pytest.mark.parametrize("says", WRONG)
def test_wrong_searches_are_refused(says: str) -> None:
    with pytest.raises(SpecError) as caught:
        RankSearchSpec(**WRONG[says])
    assert caught.value.faults == [says]


@pytest.mark.slow
def test_what_cannot_be_cut_or_measured_is_refused(tmp_path: Path) -> None:
    job = planted.job(1, tmp_path)
    with pytest.raises(DataError, match="No rows are held out, so no rank can be measured"):
        truncate(replace(job, held_out=()), RankSearchSpec(rank=8))
    lorakit.detach(job.model)
    dora = lorakit.attach(job.model, Spec(rank=8, delta="dora", targets=("middle",)))
    message = "delta dora cannot be cut or grown: that needs plain LoRA, and a start that"
    with pytest.raises(SpecError, match=message):
        truncate(replace(job, adapter=dora), RankSearchSpec(rank=8))
    message = "accuracy is counted where rows have classes; the task is causal-lm"
    with pytest.raises(SpecError, match=message):
        truncate(job, RankSearchSpec(rank=8, metric="accuracy"))
    message = "f1 decides between two classes; here are 3: take accuracy or loss"
    with pytest.raises(SpecError, match=message):
        truncate(
            replace(job, task="classify", labels=["a", "b", "c"]),
            RankSearchSpec(rank=8, metric="f1"),
        )
    with pytest.raises(DataError, match="Only 1 row is held out"):
        choose_rank({1: RowScores(np.ones(1), np.ones(1))})


def test_default_ranks_are_powers_of_two() -> None:
    assert RankSearchSpec(rank=32).ranks == (1, 2, 4, 8, 16, 32)
    assert RankSearchSpec(rank=5, try_ranks=(3, 1)).ranks == (1, 3, 5)
