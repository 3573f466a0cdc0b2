"""A run reports its plan first, refuses what cannot fit, and rehearses its longest batch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from lorakit.data.batches import Batches
from lorakit.errors import PlanError, SpecError, TrainingError
from lorakit.plan import devices
from lorakit.spec import Spec
from lorakit.tasks.rows import encode_rows
from lorakit.train import loop, planning, rehearsal
from lorakit.train import prepare as preparing
from lorakit.train.config import TrainSpec
from lorakit.train.job import Job
from lorakit.train.prepare import prepare_run
from lorakit.train.run import train_adapter

from ..conftest import sentences


@pytest.fixture
def settings(tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    data = tmp_path / "text.jsonl"
    data.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences(60)))
    return {
        "model": str(tiny_llama),
        "data": str(data),
        "output": str(tmp_path / "out"),
        "batch_size": 4,
        "steps": 12,
        "lr": 5e-3,
        "threads": 1,
    }


def small(monkeypatch: pytest.MonkeyPatch, usable: int) -> None:
    monkeypatch.setattr(
        planning,
        "this_machine",
        lambda cpu: devices.Device("this machine", usable, usable, gpu=False),
    )


@pytest.mark.slow
def test_data_and_plan_are_the_first_messages(
    settings: dict[str, Any],
) -> None:
    messages: list[str] = []
    report = train_adapter(TrainSpec(**{**settings, "steps": 2}), Spec(rank=4), say=messages.append)
    assert messages[0].startswith("data: ")
    assert messages[1].startswith(
        f"plan: {report['trainable_parameters']:,} of {report['total_parameters']:,} "
        "parameters train, "
    )
    assert messages[2].startswith("Loading ")
    assert report["plan"]["memory"]["peak"] > report["plan"]["memory"]["activations"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classify", "causal-lm"])
def test_what_is_planned_is_what_trains(
    kind: str, settings: dict[str, Any], tiny_bert: Path, tmp_path: Path
) -> None:
    if kind == "classify":  # a new head trains whole
        rows = tmp_path / "labelled.csv"
        rows.write_text(
            "text,label\n" + "".join(f"{s},{i % 3}\n" for i, s in enumerate(sentences(40)))
        )
        settings |= {"model": str(tiny_bert), "data": str(rows)}
    facts = prepare_run(TrainSpec(**settings), Spec(rank=4)).facts
    for name in ("trainable_parameters", "total_parameters", "adapted_modules"):
        assert facts["plan"][name] == facts[name]


@pytest.mark.slow
def test_what_cannot_fit_is_refused_before_weights_are_loaded(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small(monkeypatch, 100_000)
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "load", lambda *args, **more: pytest.fail("weights were loaded"))
        with pytest.raises(SpecError) as caught:
            train_adapter(TrainSpec(**settings), Spec(rank=4))
    assert caught.value.message.startswith("The largest batch, 4 sequences of ")
    assert caught.value.message.endswith(" bytes; this machine has 100,000 for tensors.")
    assert any(fault.startswith("activations   ") for fault in caught.value.faults)
    assert "--beyond-memory starts all the same. Nothing was started." in caught.value.advice
    assert not (tmp_path / "out").exists()
    assert (
        train_adapter(TrainSpec(**{**settings, "steps": 2, "beyond_memory": True}), Spec(rank=4))[
            "steps"
        ]
        == 2
    )


@pytest.mark.slow
def test_a_model_that_cannot_be_planned_trains(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def untold(*args: Any) -> None:
        raise PlanError("A step of Odd cannot be run on shapes alone.")

    monkeypatch.setattr(planning, "describe_plan", untold)
    messages: list[str] = []
    assert (
        train_adapter(TrainSpec(**{**settings, "steps": 2}), Spec(rank=4), say=messages.append)[
            "plan"
        ]
        is None
    )
    assert messages[1] == "note: no plan: A step of Odd cannot be run on shapes alone."


@pytest.mark.slow
def test_a_plan_takes_two_seconds_or_a_share_of_a_longer_run(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PLAN_SECONDS", 0.0)
    messages: list[str] = []
    report = train_adapter(TrainSpec(**{**settings, "steps": 2}), Spec(rank=4), messages.append)
    assert report["plan"] is None and report["steps"] == 2
    assert messages[1].startswith("note: no plan: A step of LlamaForCausalLM is not planned: ")
    for fastest in ("FASTEST_CPU", "FASTEST_GPU"):
        monkeypatch.setattr(planning, fastest, 1e6)
    settings["output"] += "-slow"
    report = train_adapter(TrainSpec(**{**settings, "steps": 2}), Spec(rank=4), messages.append)
    assert report["plan"] is not None


@pytest.mark.slow
def test_the_longest_batch_of_the_run_goes_first(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []
    for module, where in ((rehearsal, "rehearsed"), (loop, "trained")):
        real = module.training_loss

        def noted(model: Any, batch: Any, *more: Any, real: Any = real, where: str = where) -> Any:
            seen.append((where, tuple(batch["input_ids"].shape)))
            return real(model, batch, *more)

        monkeypatch.setattr(module, "training_loss", noted)
    train_adapter(TrainSpec(**settings, accumulate=2), Spec(rank=4))
    trained = [shape for where, shape in seen if where == "trained"]
    assert [where for where, _ in seen] == ["rehearsed"] + ["trained"] * 24
    assert seen[0][1] == max(trained, key=lambda s: (s[0] * s[1], s[1])) != trained[0]


@pytest.mark.slow
def test_the_rehearsal_leaves_no_trace(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Spec(rank=4, dropout=0.2)
    train_adapter(TrainSpec(**settings), spec)
    monkeypatch.setattr(loop, "rehearse", lambda *args: (0, 0))
    train_adapter(TrainSpec(**{**settings, "output": str(tmp_path / "without")}), spec)
    one, other = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "without")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    lines = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("out", "without")
    ]
    assert lines[0] == lines[1]


def counted(model: Any, args: Any, out: Any) -> None:
    model.seen.add_(1)


def rehearsed(settings: dict[str, Any], hook: Any = None) -> tuple[Any, tuple[int, int]]:
    job = prepare_run(TrainSpec(**settings), Spec(rank=4, dropout=0.2)).job
    job.model.train().register_buffer("seen", torch.zeros(1))
    job.model.register_forward_hook(hook or counted)
    try:
        return job, rehearsal.rehearse(job, Accelerator(cpu=True), 0, 12)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_gradients_buffers_and_random_numbers_are_as_before(settings: dict[str, Any]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    job, (rows, width) = rehearsed(settings)
    batches = Batches([len(e.ids) for e in job.examples], 4, job.settings.seed)
    assert rows * width == max(n * w for n, w in map(batches.shape, range(12)))
    assert torch.equal(torch.get_rng_state(), before)
    assert job.model.seen.item() == 0
    assert all(p.grad is None for p in job.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_running_out_of_memory_is_reported_before_the_first_step(
    error: Exception, settings: dict[str, Any]
) -> None:
    def full(*args: Any) -> None:
        raise error

    with pytest.raises(
        TrainingError,
        match=r"Memory ran out on the longest batch of the run: 4 sequences of \d+ tokens. No "
        r"step was taken.\nLower --batch-size",
    ):
        rehearsed(settings, full)


@pytest.mark.slow
def test_other_errors_are_not_reported_as_memory(settings: dict[str, Any]) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("a shape that does not fit")

    with pytest.raises(RuntimeError, match="a shape that does not fit"):
        rehearsed(settings, broken)


def test_a_run_with_no_batch_left_rehearses_nothing(settings: dict[str, Any]) -> None:
    assert rehearsal.rehearse(cast(Job, None), Accelerator(cpu=True), 5, 5) == (0, 0)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert (
        replace(TrainSpec(**settings), beyond_memory=True).differences(
            TrainSpec(**settings).to_dict()
        )
        == []
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classify", "causal-lm"])
def test_the_plan_reads_rows_as_training_does(
    kind: str,
    settings: dict[str, Any],
    tiny_bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are tokenised once, before weights are loaded: with the loaded model the same would come
    out.
    """
    if kind == "classify":
        rows = tmp_path / "labelled.csv"
        rows.write_text(
            "text,label\n" + "".join(f"{s},{i % 3}\n" for i, s in enumerate(sentences(40)))
        )
        settings |= {"model": str(tiny_bert), "data": str(rows)}
    read: list[Any] = []
    real = planning.tokenise_rows
    monkeypatch.setattr(
        planning,
        "tokenise_rows",
        lambda base, rows, *more: read.append(rows) or real(base, rows, *more),
    )
    ready = prepare_run(TrainSpec(**settings, max_length=12), Spec(rank=4))
    assert ready.job.examples == encode_rows(read[0], ready.loaded, 12)
    assert max(len(e.ids) for e in ready.job.examples) == 12
