"""The versions of constraints.txt can be installed on every promised Python."""

import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_pins_install_on_the_oldest_promised_python() -> None:
    # A pin that asks for 3.11.5 makes pip of Python 3.11.2 search without an end.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    refused = []
    for name, version in read_pins().items():
        try:
            required = metadata(name).get("Requires-Python") or ""
        except PackageNotFoundError:
            continue  # read by `make peers` alone, or of another Python
        if not SpecifierSet(required).contains(oldest):
            refused.append(f"{name}=={version} needs Python {required}")
    assert refused == []


def read_pins() -> dict[str, str]:
    """Return the pinned versions by name."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return dict(pins)
