"""The log shows means of losses and times with evaluations; the file has each step."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lorakit.spec import Spec
from lorakit.train import log
from lorakit.train.config import TrainSpec
from lorakit.train.log import Log
from lorakit.train.run import train_adapter

from ..conftest import sentences


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


def write_steps(path: Path, clock: list[float], losses: list[float], start: int = 0) -> None:
    """Log steps of a second each; every fourth is followed by an evaluation of ten."""
    written = Log(path, start, 8)
    for step, loss in enumerate(losses, start + 1):
        clock[0] += 1
        line = {"step": step, "loss": loss, "tokens": 10, "seconds": float(step)}
        if step % 4 == 0:
            clock[0] += 10
            line["eval_loss"] = 9.0
        written.step(line)
    written.close()


def test_the_loss_of_a_line_is_the_mean_since_the_last_one(
    tmp_path: Path,
    clock: list[float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log, "PLAIN_LINES", 4)
    write_steps(tmp_path / "metrics.jsonl", clock, [8.0, 4.0, 2.0, 6.0, 1.0, 3.0])
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("loss ")[2].split()[0] for line in lines] == [
        "8.0000",
        "4.0000",
        "4.0000",
        "2.0000",
    ]
    written = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in written] == [8.0, 4.0, 2.0, 6.0, 1.0, 3.0]


@pytest.mark.parametrize("start", [0, 2])
def test_the_time_left_includes_evaluations(
    start: int, tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    write_steps(tmp_path / "metrics.jsonl", clock, [1.0] * (6 - start), start)
    last = capsys.readouterr().err.splitlines()[-1]
    steps = 6 - start
    assert last.endswith(f"{2 * (steps + 10) / steps:.1f} s left")


def test_an_evaluation_has_a_bar_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "60")
    written = Log(tmp_path / "metrics.jsonl", 0, 8)
    with written.evaluating(30) as advance:
        advance(10)
        (task,) = [one for one in written.bar.tasks if one.description == "evaluating"]
        assert (task.completed, task.total) == (10, 30)
        written.bar.refresh()
    assert [task.description for task in written.bar.tasks] == ["training"]
    written.close()
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err)  # colours, cursor
    assert "evaluating" in shown and "10/30" in shown
    assert max(map(len, re.split(r"[\r\n]", shown))) <= 60


@pytest.mark.slow
def test_a_run_advances_the_bar_of_its_evaluations(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    @contextmanager
    def evaluating(_: Log, total: int) -> Iterator[Callable[[int], None]]:
        counts.append(-total)
        yield counts.append

    monkeypatch.setattr(Log, "evaluating", evaluating)
    data = tmp_path / "text.jsonl"
    data.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences(20)))
    settings = TrainSpec(
        model=str(tiny_llama), data=str(data), output=str(tmp_path / "out"), steps=1, threads=1
    )
    train_adapter(settings, Spec(rank=2))
    assert counts[0] < 0 and sum(counts) == 0
