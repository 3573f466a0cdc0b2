"""What holds for all runs of these tests."""

import pytest


@pytest.fixture(autouse=True)
def time_to_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is planned, however busy the machine is."""
    from lorakit.train import planning

    monkeypatch.setattr(planning, "PLAN_SECONDS", 60.0)
