"""The dtype of a base for `auto`: chosen by one rule, reported, and kept when a run is resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from lorakit.models import load as models
from lorakit.models.load import BFLOAT16_WIDTH, auto_dtype
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.run import train_adapter

from ..conftest import sentences
from .test_run import equal, stop_after

CPU = torch.device("cpu")


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the processor can do, as its file says it."""

    def says(flags: str) -> None:
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor : 0\nflags : fpu avx512f {flags}\n")
        monkeypatch.setattr(models, "CPU_INFO", path)

    return says


@pytest.mark.parametrize(
    ("flags", "width", "task", "trains_base", "want"),
    [
        ("amx_bf16", BFLOAT16_WIDTH, "causal-lm", False, torch.bfloat16),
        ("avx512_bf16", BFLOAT16_WIDTH, "causal-lm", False, torch.bfloat16),
        ("", BFLOAT16_WIDTH, "causal-lm", False, torch.float32),
        ("amx_bf16", BFLOAT16_WIDTH - 16, "causal-lm", False, torch.float32),
        ("amx_bf16", BFLOAT16_WIDTH, "classify", False, torch.float32),
        ("amx_bf16", BFLOAT16_WIDTH, "causal-lm", True, torch.float32),
    ],
)
def test_the_rule(
    flags: str, width: int, task: str, trains_base: bool, want: torch.dtype, processor: Any
) -> None:
    processor(flags)
    config = LlamaConfig(hidden_size=width, num_attention_heads=8, num_key_value_heads=8)
    assert auto_dtype(CPU, config, task, trains_base=trains_base) == want
    assert auto_dtype(torch.device("meta"), config, task, trains_base=trains_base) == torch.float32


@pytest.mark.slow
def test_a_run_reports_its_dtype_and_resumes_in_it(
    tiny_llama: Path, tmp_path: Path, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "BFLOAT16_WIDTH", 32)
    processor("avx512_bf16")
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"text": s}) + "\n" for s in sentences(40))
    )
    settings: dict[str, Any] = {
        "model": str(tiny_llama),
        "data": str(tmp_path / "d.jsonl"),
        "batch_size": 8,
        "steps": 6,
        "lr": 5e-3,
        "threads": 1,
        "checkpoint_every": 2,
        "eval_fraction": 0.0,
    }
    messages: list[str] = []
    report = train_adapter(
        TrainSpec(**settings, output=str(tmp_path / "straight")), Spec(rank=2), say=messages.append
    )
    assert (
        report["base_dtype"],
        report["plan"]["base_dtype"],
        report["settings"]["base_dtype"],
    ) == (
        "bfloat16",
        "bfloat16",
        "auto",
    )
    assert ", the base in bfloat16; " in messages[1]
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3, RuntimeError("the power went out"))
        with pytest.raises(RuntimeError, match="power"):
            train_adapter(TrainSpec(**settings, output=str(tmp_path / "out")), Spec(rank=2))
    processor("")  # another machine
    again = train_adapter(
        TrainSpec(**settings, output=str(tmp_path / "out"), resume=True), Spec(rank=2)
    )
    assert again["base_dtype"] == "bfloat16" and equal(tmp_path / "out", tmp_path / "straight")
    assert (
        train_adapter(TrainSpec(**settings, output=str(tmp_path / "other")), Spec(rank=2))[
            "base_dtype"
        ]
        == "float32"
    )
