"""What holds for all tests: no network, and what this machine lacks is skipped with a reason."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
SHARED = Path(os.environ.get("LORAKIT_SHARED") or Path(__file__).parents[2] / "shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {
        "shared": None if (SHARED / "data").is_dir() else f"no small real models in {SHARED} (LORAKIT_SHARED names them)"
    }
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        reasons["gpu"] = None if torch.cuda.is_available() else "no GPU"
    for item in items:
        for mark, reason in reasons.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with small real models and data sets; only for tests marked `shared`."""
    return SHARED / "data"
