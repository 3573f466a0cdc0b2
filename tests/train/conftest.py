"""What holds for all runs of these tests, and the settings of a short one."""

import json
from pathlib import Path
from typing import Any

import pytest

from ..conftest import sentences


@pytest.fixture(autouse=True)
def time_to_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is planned, however busy the machine is."""
    from lorakit.train import planning

    monkeypatch.setattr(planning, "PLAN_SECONDS", 60.0)


@pytest.fixture
def short_run(tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run on forty sentences; how long it is, each test says."""
    data = tmp_path / "text.jsonl"
    data.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences(40)))
    return {
        "model": str(tiny_llama),
        "data": str(data),
        "output": str(tmp_path / "out"),
        "lr": 5e-3,
        "threads": 1,
    }
