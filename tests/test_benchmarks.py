"""What the benchmark of a step measures: on a GPU by its own clock and allocator, on both sides the
same values trained.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]  # of PEFT


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step

    yield step
    for name in ("step", "head", "beside_peft"):
        sys.modules.pop(name, None)


TINY = {
    "blocks": 1,
    "width": 32,
    "inner": 64,
    "heads": 2,
    "vocabulary": 64,
    "tokens": 16,
    "rank": 2,
}


def test_a_gpu_is_timed_between_two_events_and_its_allocator_tells_the_peak(
    step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            told.append("event")

        def elapsed_time(self, other: "Event") -> float:
            return 250.0

    for name, value in (
        ("Event", Event),
        ("synchronize", lambda: told.append("wait")),
        ("memory_allocated", lambda: 1000),
        ("reset_peak_memory_stats", lambda: told.append("reset")),
        ("max_memory_allocated", lambda: 5000),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    assert step.time_call(lambda: told.append("call"), gpu=True) == 0.25
    assert told == ["event", "call", "event", "wait"]
    run = step.Run("lorakit", step.Setting(**TINY))
    run.gpu = True
    assert run.peak() == 4000 and told[4:] == ["wait", "reset", "wait"]


def test_sides_that_train_different_values_are_not_compared(
    step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = step.measure(step.Setting(**TINY), ("floor", "PEFT", "lorakit"), 1)
    assert rows[1]["trained"] == rows[2]["trained"] > 0 == rows[0]["trained"]
    assert rows[2]["saved_mib"] > rows[0]["saved_mib"] > 0 and rows[2]["peak_mib"] > 0
    monkeypatch.setitem(step.VARIANTS, "PEFT", step.build_full)
    with pytest.raises(SystemExit, match="the two sides train"):
        step.measure(step.Setting(**TINY), ("floor", "PEFT", "lorakit"), 1)


def test_mutated_adapter_folders_are_refused_or_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fuzz

    counts, faults = fuzz.run(400, seed=7)
    for name in ("fuzz", "beside_peft"):
        sys.modules.pop(name, None)
    assert faults == []
    assert counts["refused"] > 150 and counts["loaded and attached"] > 40
    assert counts.total() == 400
