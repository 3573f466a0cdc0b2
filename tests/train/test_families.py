"""A default run starts on every family of models, or is refused before weights are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

import lorakit
from lorakit import Adapter
from lorakit.cli.__main__ import main
from lorakit.errors import ModelError

from .families import FAMILIES, WITH_PICTURES, train_default

pytestmark = pytest.mark.slow
Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """A function that runs a command and returns its JSON."""

    def run(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        code = main([*map(str, arguments), "--json"])
        out, errors = capsys.readouterr()
        assert code == 0, errors
        return json.loads(out)

    return run


@pytest.mark.parametrize("name", FAMILIES)
def test_a_default_run_trains_or_is_refused_before_weights_are_read(
    name: str, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    said: list[str] = []
    if family.refused:
        with pytest.raises(ModelError) as caught:
            train_default(family, tmp_path, said.append)
        assert family.refused in str(caught.value) and family.kind in str(caught.value)
        assert not any(line.startswith("Loading") for line in said)
        return
    report = train_default(family, tmp_path, said.append)
    assert report["steps"] == 2 and report["plan"] is not None
    assert tuple(report["coverage"]["left_out"]) == family.left_out
    for module in family.left_out:
        notes = [line for line in "\n".join(said).splitlines() if line.startswith("  note: ")]
        assert any(module in line and "left out of 'all-linear'" in line for line in notes)
    adapter = Adapter.load(tmp_path / "out")
    assert len(adapter.deltas) == report["adapted_modules"] > 0
    assert all(delta.matrix().any() for delta in adapter.deltas.values())


@pytest.mark.parametrize("name", ["qwen2_5_vl", "smolvlm"])
def test_models_with_pictures_learn_and_write_text(name: str, ask: Ask, tmp_path: Path) -> None:
    train_default(WITH_PICTURES[name], tmp_path)
    model, adapter, data = tmp_path / "model", tmp_path / "out", tmp_path / "rows.jsonl"
    chosen = ("--model", model, "--adapter", adapter)
    base_loss = ask("eval", "--model", model, "--data", data)["loss"]
    assert ask("eval", *chosen, "--data", data)["loss"] < base_loss
    written = ask("generate", *chosen, "--prompt", "the cat", "--max-new-tokens", "4")
    assert written["answers"][0]["text"]
    ask("merge", *chosen, "--output", tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    base = AutoModelForImageTextToText.from_pretrained(model)
    lorakit.attach(base, Adapter.load(adapter))
    lorakit.merge(base)
    values = dict(base.named_parameters())
    assert all(value.equal(values[key]) for key, value in merged.named_parameters())
