"""A dry run refuses what a run would refuse before its first step, and writes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lorakit.cli.__main__ import main
from lorakit.errors import OutputError, TrainingError
from lorakit.spec import Spec
from lorakit.train import dry_run
from lorakit.train.config import TrainSpec
from lorakit.train.dry_run import try_run
from lorakit.train.prepare import PreparedRun, prepare_run
from lorakit.train.run import train_adapter

from ..conftest import sentences


@pytest.fixture
def settings(tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences(40)))
    return {
        "model": str(tiny_llama),
        "data": str(rows),
        "output": str(tmp_path / "new" / "out"),
        "batch_size": 8,
        "steps": 4,
        "threads": 1,
    }


@pytest.mark.slow
def test_it_has_the_facts_of_the_run_and_writes_nothing(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = try_run(TrainSpec(**settings), Spec(rank=4))
    assert sorted(tmp_path.rglob("*")) == before
    report = train_adapter(TrainSpec(**settings), Spec(rank=4))
    same = set(found) & set(report) - {"plan"}  # which times the machine
    assert {key: found[key] for key in same} == {key: report[key] for key in same}
    assert {"coverage", "plan", "steps", "lr", "output"} <= set(found)
    assert found["longest_batch"][0] == 8 and found["first_step"] == 0


@pytest.mark.slow
def test_it_says_where_a_resumed_run_would_go_on(settings: dict[str, Any]) -> None:
    train_adapter(TrainSpec(**settings), Spec(rank=4))
    with pytest.raises(OutputError, match="holds a run already"):
        try_run(TrainSpec(**settings), Spec(rank=4))
    with pytest.raises(OutputError, match="rank: was 4, now 2"):
        try_run(TrainSpec(**settings, resume=True), Spec(rank=2))
    assert try_run(TrainSpec(**settings, resume=True), Spec(rank=4))["first_step"] == 4


@pytest.mark.slow
def test_a_module_without_a_gradient_is_found(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*args: Any) -> PreparedRun:
        prepared = prepare_run(*args)
        layer = prepared.job.model.model.layers[1]
        layer.mlp.forward = lambda x: nn.Module.__call__(layer.input_layernorm, x)
        return prepared

    monkeypatch.setattr(dry_run, "prepare_run", cut)
    with pytest.raises(TrainingError, match=r"3 of 14 trained modules got no gradient"):
        try_run(TrainSpec(**settings), Spec(rank=4))


@pytest.mark.slow
def test_the_command_says_what_would_be_run(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--dry-run", "--rank", "4"]
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "The run would take 4 steps of 1 batch, with a peak learning rate of" in told
    assert "The longest batch, 8 sequences of" in told
    assert f"It would write to {settings['output']}. Nothing was written" in told
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["memory"]["peak"] > 0 and found["coverage"]["modules"]
    assert not Path(settings["output"]).parent.exists()
