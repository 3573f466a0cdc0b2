"""`lorakit inspect --attention` shows where base and adapted model look, as a table, as JSON and as
one picture.
"""

import json
from pathlib import Path

import pytest
import torch

import lorakit
from lorakit.cli.__main__ import main
from lorakit.models.open import open_model

from ..conftest import sentences

TEXT = sentences(1, seed=7)[0]


@pytest.fixture(scope="module")
def moved(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny causal model that moves its attention."""
    adapter = lorakit.attach(
        open_model(str(tiny_llama), None, "causal-lm").model, lorakit.Spec(rank=2, targets="qv")
    )
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for delta in adapter.deltas.values():
            delta.B.copy_(torch.randn(delta.B.shape, generator=draw))
    return adapter.save(tmp_path_factory.mktemp("adapters") / "moved")


def told(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    code = main([*map(str, argv)])
    out, errors = capsys.readouterr()
    assert code == 0, errors
    return out


@pytest.mark.slow
def test_the_maps_are_told(
    capsys: pytest.CaptureFixture[str], moved: Path, tiny_llama: Path
) -> None:
    out = told(capsys, "inspect", moved, "--model", tiny_llama, "--attention", TEXT)
    found = json.loads(
        told(capsys, "inspect", moved, "--model", tiny_llama, "--attention", TEXT, "--json")
    )["attention"]
    layer, head = found["most"]
    assert len(found["by_head"]) == 2 and len(found["by_head"][0]) == 4
    assert found["by_head"][layer][head] == max(max(row) for row in found["by_head"]) > 0
    assert f"attention without and with the adapter: {found['distance']:.3f} bits apart" in out
    assert f"Layer {layer}, head {head}, which changed most:" in out
    count = len(found["tokens"])
    assert found["text"] == TEXT and [len(row) for row in found["after"]] == [count] * count
    first = found["moves"][0]
    weights = f"{first['before']:.2f} -> {first['after']:.2f}"
    assert f"attention of {first['token']!r} to {first['at']!r}: {weights}" in out


@pytest.mark.slow
def test_they_are_drawn(
    capsys: pytest.CaptureFixture[str], moved: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "maps.png"
    out = told(
        capsys, "inspect", moved, "--model", tiny_llama, "--attention", TEXT, "--plot", picture
    )
    assert f"picture: {picture}" in out and picture.stat().st_size > 10_000


def test_maps_without_a_base_are_refused(capsys: pytest.CaptureFixture[str], moved: Path) -> None:
    assert main(["inspect", str(moved), "--attention", TEXT]) == 2
    assert (
        "--attention compares with the base's own maps: name it (--model)."
        in capsys.readouterr().err
    )
