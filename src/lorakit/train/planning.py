"""The plan of a run: tokenised rows, the dtype of the base, and the memory that it needs."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorakit.data.encode import Example
from lorakit.data.on_demand import ExamplesOnDemand, count_tokens
from lorakit.errors import NOT_STARTED, OutputError, PlanError, SpecError, TargetError
from lorakit.inject.full_parameters import find_full_modules
from lorakit.models.load import auto_dtype, device_of
from lorakit.models.precision import gpu_autocast, has_bfloat16
from lorakit.plan.devices import this_machine
from lorakit.plan.estimate import make_plan
from lorakit.plan.meta_model import MetaModel, load_meta_model
from lorakit.plan.meter import time_limit
from lorakit.plan.reach import leave_out_unreached
from lorakit.plan.report import (
    Description,
    allocate_run_ranks,
    describe_plan,
    make_batches,
    make_work,
    summarise,
    tokenise_rows,
    trains_base,
)
from lorakit.spec import Spec
from lorakit.text import dtype_name
from lorakit.train.config import TrainSpec
from lorakit.train.data import RunData
from lorakit.train.log import Say
from lorakit.train.output import read_earlier_run

# CPU seconds that a plan may take, or a share of the run if that is more.
PLAN_SECONDS = 2.0
PLAN_SHARE = 0.05
# Operations a second that no machine exceeds in training, with a GPU and without one.
FASTEST_GPU, FASTEST_CPU = 5e14, 1e12
OPERATIONS = 4  # for each parameter and token: a product forward, and one backward


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run, made before any weight is loaded.

    Attributes:
        examples: the rows to train on, tokenised.
        spec: spec of the adapter; modules that no row reaches are excluded from default targets.
        left_out: the reason for each of those modules, by name.
        base_dtype: dtype of the base model.
        mixed_precision: dtype of autocast: no, bf16 or fp16.
        report: parameters and memory, as `lorakit plan` reports them; None where shapes alone do
            not tell them.
    """

    examples: Sequence[Example]
    spec: Spec
    left_out: dict[str, str]
    base_dtype: str
    mixed_precision: str
    report: Description | None


def plan_run(settings: TrainSpec, spec: Spec, data: RunData, say: Say) -> RunPlan:
    """Tokenise the rows and plan the run, before any weight is loaded.

    Raises:
        SpecError: the largest batch does not fit into the memory of this machine.
        LorakitError: a model that cannot be read, or rows that cannot be tokenised.
    """
    base = load_meta_model(
        settings.model,
        data.task,
        labels=len(data.labels) or 2,
        trust_remote_code=settings.trust_remote_code,
    )
    examples = tokenise_rows(
        base,
        data.rows,
        settings.max_length,
        data.labels,
        settings.loss_on,
        settings.template,
        Path(settings.adapter) if settings.adapter else None,
    )
    if isinstance(examples, ExamplesOnDemand):
        say(
            f"note: {len(data.rows):,} rows are tokenised when a batch needs them; the lengths of "
            "short ones are estimated"
        )
    dtype, mixed = choose_precision(settings, base, spec)
    settled = replace(settings, base_dtype=dtype, mixed_precision=mixed)
    with time_limit(_limit_seconds(settings, base, count_tokens(examples))):
        if settings.adapter:
            spec, left_out = _leave_out_absent(base, spec), {}
        else:
            spec, left_out = leave_out_unreached(base, spec)
        report = _plan_memory(settled, spec, base, examples, say)
    return RunPlan(examples, spec, left_out, dtype, mixed, report)


def _leave_out_absent(base: MetaModel, spec: Spec) -> Spec:
    """Return the spec of an adapter without the full modules that the model does not have."""
    present = [
        pattern
        for pattern in spec.full_modules
        if find_full_modules(base.model, [pattern], require_match=False)
    ]
    return replace(spec, full_modules=tuple(present))


def choose_precision(settings: TrainSpec, base: MetaModel, spec: Spec) -> tuple[str, str]:
    """Return the dtype of the base, and of autocast: of the settings, or by rule.

    A run that is resumed keeps those it was started with, on any machine.

    Raises:
        SpecError: it was started in fp16, and this machine has no GPU.
    """
    device = device_of(settings.device)
    earlier: dict[str, Any] = {}
    if settings.resume:
        # A damaged file is reported where the settings are compared.
        with suppress(OutputError):
            earlier = read_earlier_run(Path(settings.output))
    dtype = settings.base_dtype
    if dtype == "auto":
        config, train_in_full = base.transformer.config, trains_base(spec)
        chosen = auto_dtype(device, config, base.task, trains_base=train_in_full)
        dtype = earlier.get("base_dtype", dtype_name(chosen))
    mixed = settings.mixed_precision
    if mixed == "auto" and earlier:
        mixed = earlier.get("mixed_precision", "no")  # "no" in runs of earlier versions
    elif mixed == "auto":
        mixed = _auto_autocast(settings, dtype, device)
    if mixed == "fp16" and device.type == "cpu":
        raise SpecError(
            f"The run in {settings.output} was started in fp16, which needs a GPU.",
            advice=f"Resume it on one. {NOT_STARTED}",
        )
    return dtype, mixed


def _auto_autocast(settings: TrainSpec, dtype: str, device: torch.device) -> str:
    if device.type != "cuda":
        return "no"
    return gpu_autocast(
        getattr(torch, dtype),
        bfloat16=has_bfloat16(device),
        is_chosen=settings.base_dtype != "auto",
    )


def _plan_memory(
    settings: TrainSpec, spec: Spec, base: MetaModel, examples: Sequence[Example], say: Say
) -> Description | None:
    """Return the plan of the run and print its summary; None if shapes alone do not give it.

    Raises:
        SpecError: the largest batch does not fit into the memory of this machine.
    """
    batches = make_batches(settings, base, examples)
    work = make_work(settings, base, spec, batches, examples)
    # Whether an adapter that exists fits is for `attach` to say.
    unknown = (PlanError, TargetError) if settings.adapter else PlanError
    try:
        plan = make_plan(base, allocate_run_ranks(base, spec, settings), work)
        report = describe_plan(plan, this_machine(cpu=settings.device == "cpu"))
    except unknown as error:
        say(f"note: no plan: {error.message}")
        return None
    say(summarise(report))
    needed, usable = report["memory"]["peak"], report["usable_bytes"]
    if needed is not None and needed > usable and not settings.beyond_memory:
        raise SpecError(
            f"The largest batch, {report['batch']} sequences of {report['length']:,} tokens, "
            f"needs {needed:,} bytes; this machine has {usable:,} for tensors.",
            [f"{part}   {count:,} bytes" for part, count in report["memory"].items()],
            "Lower --batch-size (--accumulate makes up for it) or --max-length, "
            "or give --gradient-checkpointing; "
            f"--beyond-memory starts all the same. {NOT_STARTED}",
        )
    return report


def _limit_seconds(settings: TrainSpec, base: MetaModel, lengths: Sequence[int]) -> float:
    """Return the CPU seconds that a plan may take; the run is not thought slower than it can be."""
    rows = settings.epochs * len(lengths)
    if settings.steps:
        rows = settings.steps * settings.accumulate * settings.batch_size
    tokens = rows * sum(lengths) / max(len(lengths), 1)
    parameters = sum(parameter.numel() for parameter in base.model.parameters())
    is_gpu = device_of(settings.device).type == "cuda"
    seconds = OPERATIONS * parameters * tokens / (FASTEST_GPU if is_gpu else FASTEST_CPU)
    return max(PLAN_SECONDS, PLAN_SHARE * seconds)
