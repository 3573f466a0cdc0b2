"""A spike of the loss is found, noise is none, and the report has the spikes of its run."""

import json
import random
from pathlib import Path

import pytest

from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.run import train_adapter
from lorakit.train.spikes import find_spikes, has_climbed

from ..conftest import sentences


def losses(seed: int, count: int = 300, noise: float = 0.15) -> list[float]:
    draw = random.Random(seed)
    return [1 + 3 / (1 + i / 20) + draw.gauss(0, noise) for i in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_spike(seed: int) -> None:
    assert find_spikes(losses(seed)) == []


@pytest.mark.parametrize("at", [30, 150, 299])
def test_a_spike_is_found_at_its_step(at: int) -> None:
    found = losses(0)
    found[at] += 4
    assert find_spikes(found) == [at + 1]


def test_a_lasting_rise_is_a_spike_while_most_of_the_window_is_lower() -> None:
    found = [2.0] * 30 + [5.0] * 30
    assert find_spikes(found) == list(range(31, 41))


def test_nothing_is_judged_before_there_is_enough_to_compare() -> None:
    assert find_spikes([1.0, 50.0, 1.0]) == [] and find_spikes([]) == []
    assert find_spikes([1.0] * 10 + [float("nan")]) == [11]


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_ends_above_its_beginning_has_climbed_and_noise_has_not(seed: int) -> None:
    draw = random.Random(seed)
    flat = [3 + draw.gauss(0, 0.15) for _ in range(60)]
    assert not has_climbed(losses(seed)) and not has_climbed(flat)
    assert has_climbed([3.0, *(3 + 3 * min(1, i / 5) + draw.gauss(0, 0.15) for i in range(60))])
    assert not has_climbed([3.0] + [6.0] * 20)  # too few to tell


@pytest.mark.slow
def test_the_report_has_the_spikes_of_its_run(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": s}) + "\n" for s in sentences(60))
    )
    monkeypatch.setattr("lorakit.train.spikes.FAR", -1.0)  # anything is a jump
    settings = TrainSpec(
        model=str(tiny_llama),
        data=str(tmp_path / "text.jsonl"),
        output=str(tmp_path / "out"),
        steps=12,
        batch_size=8,
        lr=1e-9,
        threads=1,
    )
    monkeypatch.setattr("lorakit.train.run.has_climbed", lambda losses: len(losses) == 12)
    report = train_adapter(settings, Spec(rank=2))
    assert report["loss_spikes"] != [] and report["loss_climbed"]
    monkeypatch.undo()
    again = TrainSpec(**{**settings.to_dict(), "output": str(tmp_path / "calm")})
    report = train_adapter(again, Spec(rank=2))
    assert report["loss_spikes"] == [] and not report["loss_climbed"]
