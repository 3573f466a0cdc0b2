"""Cards without bfloat16 of their own train in float16 with a scaled loss; others do not."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import LlamaConfig

from lorakit.cli.__main__ import main
from lorakit.errors import SpecError, TrainingError
from lorakit.models.load import auto_dtype
from lorakit.plan.meta_model import load_meta_model
from lorakit.spec import Spec
from lorakit.train import checkpoints, loop, planning
from lorakit.train.config import TrainSpec
from lorakit.train.job import Job
from lorakit.train.planning import choose_precision
from lorakit.train.request import check_request
from lorakit.train.run import train_adapter

from .test_run import equal, lines, stop_after

T4, RTX_3080 = (7, 5), (8, 6)
CUDA = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make this machine one with a GPU of some compute capability."""

    def has(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        # It is True for an emulation, which is slow.
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)

    return has


@pytest.mark.parametrize(
    ("capability", "task", "trains_base", "want"),
    [
        (RTX_3080, "causal-lm", False, torch.bfloat16),
        (RTX_3080, "classify", False, torch.bfloat16),
        (T4, "causal-lm", False, torch.float16),
        (T4, "causal-lm", True, torch.float32),
        (T4, "classify", False, torch.float32),
        ((7, 0), "causal-lm", False, torch.float16),
    ],
)
def test_the_card_is_asked_for_its_dtype(
    capability: tuple[int, int], task: str, trains_base: bool, want: torch.dtype, card: Any
) -> None:
    card(capability)
    assert auto_dtype(CUDA, LlamaConfig(), task, trains_base=trains_base) == want


@pytest.mark.parametrize(
    ("capability", "given", "bias", "want"),
    [
        (T4, {}, "none", ("float16", "fp16")),
        (T4, {}, "all", ("float32", "fp16")),
        (T4, {"base_dtype": "float32"}, "none", ("float32", "no")),
        (T4, {"base_dtype": "bfloat16"}, "none", ("bfloat16", "no")),
        (T4, {"mixed_precision": "no"}, "none", ("float16", "no")),
        (T4, {"mixed_precision": "bf16"}, "none", ("float16", "bf16")),
        (RTX_3080, {}, "none", ("bfloat16", "no")),
        (RTX_3080, {"base_dtype": "float16"}, "none", ("float16", "fp16")),
        (None, {"base_dtype": "float16"}, "none", ("float16", "no")),
    ],
)
def test_precision_of_a_run(
    capability: tuple[int, int] | None,
    given: dict[str, str],
    bias: str,
    want: tuple[str, str],
    card: Any,
    tiny_llama: Path,
) -> None:
    if capability:
        card(capability)
    settings = TrainSpec(model=str(tiny_llama), data="d", output="o", **given)
    base = load_meta_model(str(tiny_llama), "causal-lm")
    assert choose_precision(settings, base, Spec(bias=bias)) == want


@pytest.mark.parametrize(
    ("spec", "task"), [(Spec(bias="all"), "causal-lm"), (Spec(), "classify")], ids=str
)
def test_parameters_trained_in_full_in_float16_are_refused(spec: Spec, task: str) -> None:
    settings = TrainSpec(model="m", data="d", output="o", base_dtype="float16")
    with pytest.raises(SpecError) as caught:
        check_request(settings, spec, task)
    assert caught.value.faults == [
        "base_dtype: biases, modules and heads that are trained in full would be in float16 too, "
        "whose steps are not finite; use float32"
    ]


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "dtype", "mixed"),
    [("t4", "float16", "fp16"), ("rtx-2080ti", "float16", "fp16"), ("l4", "bfloat16", "no")],
)
def test_the_plan_for_a_card_counts_in_its_precision(
    device: str, dtype: str, mixed: str, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(tiny_llama), "--device", device, "--rank", "4", "--batch-size", "2"]
    report = plan(capsys, *words)
    assert (report["base_dtype"], report["mixed_precision"]) == (dtype, mixed)
    is_scaled = ", autocast in float16 with a scaled loss; " in report["summary"]
    assert is_scaled is (mixed == "fp16")
    given = plan(capsys, *words, "--base-dtype", dtype, "--mixed-precision", mixed)
    assert given["memory"] == report["memory"]
    in_full = plan(capsys, *words, "--bias", "all")["base_dtype"]
    assert in_full == ("float32" if dtype == "float16" else dtype)


# --- runs, with a CPU that stands for the card ---------------------------------------------------


@pytest.fixture
def settings(short_run: dict[str, Any]) -> dict[str, Any]:
    return {
        **short_run,
        "batch_size": 8,
        "steps": 8,
        "checkpoint_every": 2,
    }


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> torch.amp.GradScaler:
    """Let runs compute in float16 on the CPU, with a scaler whose first steps overflow.

    accelerate refuses fp16 on a CPU, so its accelerator is made for "no" and changed.
    """
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)

    @contextmanager
    def accelerator_for(job: Job) -> Iterator[Accelerator]:
        assert job.mixed_precision == "fp16"
        accelerator = Accelerator(mixed_precision="no", cpu=True)
        AcceleratorState()._mixed_precision = "fp16"
        accelerator.native_amp = True
        scaler.load_state_dict(fresh)
        accelerator.scaler = scaler
        try:
            yield accelerator
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)

    fresh = scaler.state_dict()
    monkeypatch.setattr(loop, "_accelerator_for", accelerator_for)
    monkeypatch.setattr(planning, "choose_precision", lambda *args: ("float16", "fp16"))
    return scaler


@pytest.mark.slow
def test_a_scaled_run_learns_skips_what_overflows_and_is_resumed(
    settings: dict[str, Any], scaled: torch.amp.GradScaler, tmp_path: Path
) -> None:
    straight = TrainSpec(**{**settings, "output": str(tmp_path / "straight")})
    report = train_adapter(straight, Spec(rank=4))
    assert (report["base_dtype"], report["mixed_precision"]) == ("float16", "fp16")
    norms = [line["grad_norm"] for line in lines(tmp_path / "straight")]
    assert norms[0] is None and norms[-1] is not None
    assert report["after"]["loss"] < report["before"]["loss"]
    state = checkpoints.load(checkpoints.newest(tmp_path / "straight"))
    assert state["scaler"]["scale"] == scaled.get_scale() != 2.0**24
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 6, RuntimeError("the power went out"))
        with pytest.raises(RuntimeError, match="power"):
            train_adapter(TrainSpec(**settings), Spec(rank=4))
    train_adapter(TrainSpec(**settings, resume=True), Spec(rank=4))
    assert equal(tmp_path / "out", tmp_path / "straight")


@pytest.mark.slow
def test_gradients_that_overflow_with_any_scale_end_the_run(
    settings: dict[str, Any], scaled: torch.amp.GradScaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LEAST_SCALE", 2.0**24)
    with pytest.raises(TrainingError) as caught:
        train_adapter(TrainSpec(**settings), Spec(rank=4))
    assert "overflow float16 with any loss scale at step 1. The run was" in caught.value.message
    assert caught.value.advice.endswith("65,504: --base-dtype float32 has no such limit.")


@pytest.mark.slow
def test_a_run_in_fp16_is_not_resumed_on_a_cpu(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_adapter(TrainSpec(**{**settings, "steps": 2}), Spec(rank=4))
    path = tmp_path / "out" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mixed_precision": "fp16"}))
    with pytest.raises(SpecError, match="was started in fp16, which needs a GPU"):
        train_adapter(TrainSpec(**{**settings, "steps": 2}, resume=True), Spec(rank=4))
