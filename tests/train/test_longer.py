"""A resumed run may be longer than before: it equals one that was as long from its start."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorakit.adapter import Adapter
from lorakit.errors import OutputError
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.dry_run import try_run
from lorakit.train.log import read_metrics
from lorakit.train.run import train_adapter

from ..conftest import sentences


@pytest.fixture
def settings(tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences(60)))
    return {
        "model": str(tiny_llama),
        "data": str(rows),
        "output": str(tmp_path / "out"),
        "batch_size": 8,
        "lr": 5e-3,
        "threads": 1,
        "schedule": "constant",
        "warmup": 0.0,
        "eval_every": 5,
    }


@pytest.mark.slow
@pytest.mark.parametrize("longer", [{"steps": 20}, {"epochs": 2.5}])
def test_ten_steps_and_ten_more_equal_twenty(
    settings: dict[str, Any], longer: dict[str, Any], tmp_path: Path
) -> None:
    spec, said = Spec(rank=4, dropout=0.1), []
    whole = TrainSpec(**{**settings, **longer, "output": str(tmp_path / "whole")})
    straight = train_adapter(whole, spec)
    steps = straight["steps"]
    train_adapter(TrainSpec(**settings, steps=10), spec)
    resumed = train_adapter(TrainSpec(**settings, **longer, resume=True), spec, said.append)
    assert Adapter.load(tmp_path / "out") == Adapter.load(tmp_path / "whole")
    losses = [
        [(line["loss"], line["lr"]) for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("out", "whole")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == steps > 10
    assert f"Resuming after step 10 of {steps}." in said
    assert (
        f"note: the run was to take 10 steps, and now takes {steps}: the constant schedule is "
        "computed anew over all of them"
    ) in said
    same = ("steps", "before", "after", "loss_first", "loss_last", "tokens", "best_step")
    assert {key: resumed[key] for key in same} == {key: straight[key] for key in same}


@pytest.mark.slow
def test_a_longer_run_that_is_interrupted_is_resumed_as_it_was_made(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    train_adapter(TrainSpec(**settings, steps=2), Spec(rank=2))
    train_adapter(TrainSpec(**settings, steps=4, resume=True), Spec(rank=2))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["steps"] == 4
    said: list[str] = []
    train_adapter(TrainSpec(**settings, steps=4, resume=True), Spec(rank=2), said.append)
    assert "Resuming after step 4 of 4." in said
    assert not any("computed anew" in line for line in said)


@pytest.mark.slow
def test_the_schedule_is_that_of_the_new_length(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"schedule": "linear"}
    train_adapter(TrainSpec(**settings, steps=2), Spec(rank=2))
    train_adapter(TrainSpec(**settings, steps=8, resume=True), Spec(rank=2))
    rates = [line["lr"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")]
    assert rates[:2] == [pytest.approx(5e-3 * share) for share in (1, 0.5)]
    assert rates[2:] == [pytest.approx(5e-3 * (8 - step) / 8) for step in range(2, 8)]


@pytest.mark.slow
def test_fewer_steps_than_are_done_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    train_adapter(TrainSpec(**settings, steps=4), Spec(rank=2))
    before = (tmp_path / "out" / "run.json").read_text()
    for start in (train_adapter, try_run):
        with pytest.raises(
            OutputError,
            match=r"has taken 4 steps already, and 3 steps are asked for.\nGive as many",
        ):
            start(TrainSpec(**settings, steps=3, resume=True), Spec(rank=2))
    assert (tmp_path / "out" / "run.json").read_text() == before
