"""Training on packed rows has the losses of padded rows; it is reported, or refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lorakit.errors import SpecError
from lorakit.spec import Spec
from lorakit.train import prepare as preparing
from lorakit.train import run as running
from lorakit.train.config import TrainSpec
from lorakit.train.run import train_adapter

from ..conftest import sentences


@pytest.fixture
def settings(tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences(60)))
    return {
        "model": str(tiny_llama),
        "data": str(path),
        "output": str(tmp_path / "out"),
        "batch_size": 8,
        "steps": 10,
        "lr": 5e-3,
        "threads": 1,
        "eval_fraction": 0.0,
        "base_dtype": "float32",
    }


def losses(output: Path) -> list[float]:
    return [
        json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.slow
def test_packed_and_padded_rows_train_alike(settings: dict[str, Any], tmp_path: Path) -> None:
    report = train_adapter(TrainSpec(**settings), Spec(rank=4))
    other = train_adapter(
        TrainSpec(**{**settings, "output": str(tmp_path / "off")}, packing="off"), Spec(rank=4)
    )
    assert (report["packed"], other["packed"]) == (True, False)
    assert losses(tmp_path / "out") == pytest.approx(losses(tmp_path / "off"), abs=2e-4)


@pytest.mark.slow
def test_batches_by_tokens_train_every_row_once_an_epoch(settings: dict[str, Any]) -> None:
    settings.pop("steps")
    whole = train_adapter(TrainSpec(**{**settings, "epochs": 1.0}, overwrite=True), Spec(rank=4))
    report = train_adapter(
        TrainSpec(**{**settings, "epochs": 1.0}, overwrite=True, batch_tokens=100), Spec(rank=4)
    )
    assert report["tokens"] == whole["tokens"] and report["steps"] == whole["tokens"] // 100


@pytest.mark.slow
def test_the_attention_of_the_model_is_restored(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    real = running.fit
    monkeypatch.setattr(running, "fit", lambda job, *more: kept.append(job) or real(job, *more))
    train_adapter(TrainSpec(**settings), Spec(rank=4))
    assert kept[0].packed and kept[0].model.config._attn_implementation == "sdpa"


LEAKS = ": the rows of DATA cannot be packed for LlamaForCausalLM: a packed row sees the others."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"packing": "on"}, f"packing{LEAKS}"),
        ({"batch_tokens": 99}, f"batch_tokens{LEAKS}"),
        ({"batch_tokens": 5}, "batch_tokens: 5 asked, the longest row has 13 tokens."),
    ],
    ids=str,
)
def test_what_cannot_be_packed_is_refused(
    more: dict[str, Any], said: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "find_leak", lambda model: "a packed row sees the others")
    with pytest.raises(SpecError) as caught:
        train_adapter(TrainSpec(**settings, **more), Spec(rank=4))
    assert caught.value.message == said.replace("DATA", settings["data"])


@pytest.mark.slow
def test_rows_are_padded_where_the_model_cannot_pack_them(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "find_leak", lambda model: "a packed row sees the others")
    messages: list[str] = []
    assert (
        train_adapter(TrainSpec(**settings), Spec(rank=4), say=messages.append)["packed"] is False
    )
    assert "note: rows are padded, not packed: a packed row sees the others" in messages


@pytest.mark.slow
def test_a_run_reports_whether_its_loss_is_computed_in_chunks(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    settings |= {"steps": 1}
    assert (
        train_adapter(TrainSpec(**settings), Spec(rank=4), say=messages.append)["logits"]
        == "in chunks"
    )
    assert not any("logits" in line for line in messages)
    real = preparing.load

    def hooked(*args: Any, **more: Any) -> Any:
        loaded = real(*args, **more)
        loaded.model.register_forward_hook(lambda module, args, out: None)
        return loaded

    monkeypatch.setattr(preparing, "load", hooked)
    report = train_adapter(TrainSpec(**settings, overwrite=True), Spec(rank=4), say=messages.append)
    assert report["logits"] == "all at once: a hook on the model itself would be skipped"
    notes = [line for line in messages if "logits" in line]
    assert len(notes) == 1 and re.fullmatch(
        r"note: the loss is computed from all logits at once, not in chunks: "
        r"a hook on the model itself would be skipped; "
        r"those of the largest batch, 8 sequences of \d+ tokens, take [\d,]+ bytes in float32",
        notes[0],
    )


def test_batches_by_tokens_need_packing() -> None:
    with pytest.raises(SpecError, match="1 fault in the settings of the run") as caught:
        TrainSpec(model="m", data="d", output="o", packing="off", batch_tokens=64)
    assert caught.value.faults == [
        "batch_tokens: counts packed rows, and packing is off; use batch_size"
    ]
