"""The log shows means of losses and times with evaluations; the file has each step."""

import json
from pathlib import Path

import pytest

from lorakit.train import log
from lorakit.train.log import Log


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
