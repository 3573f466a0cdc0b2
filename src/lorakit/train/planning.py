"""The plan of a run: tokenised rows, the dtype of the base, and the memory that it needs."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.data.batches import Batches
from lorakit.data.encode import Example
from lorakit.data.on_demand import ExamplesOnDemand
from lorakit.errors import NOT_STARTED, OutputError, PlanError, SpecError
from lorakit.models.load import auto_dtype, device_of
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
        report: parameters and memory, as `lorakit plan` reports them; None where shapes alone do
            not tell them.
    """

    examples: Sequence[Example]
    spec: Spec
    left_out: dict[str, str]
    base_dtype: str
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
    )
    if isinstance(examples, ExamplesOnDemand):
        say(
            f"note: {len(data.rows):,} rows are tokenised when a batch needs them; the lengths of "
            "short ones are estimated"
        )
    dtype = _base_dtype(settings, base, spec)
    batches = make_batches(settings, base, examples)
    with time_limit(_limit_seconds(settings, base, batches)):
        spec, left_out = leave_out_unreached(base, spec)
        report = _plan_memory(replace(settings, base_dtype=dtype), spec, base, batches, say)
    return RunPlan(examples, spec, left_out, dtype, report)


def _base_dtype(settings: TrainSpec, base: MetaModel, spec: Spec) -> str:
    """Return the dtype of the base: of the settings, of the run that is resumed, or by rule."""
    if settings.base_dtype != "auto":
        return settings.base_dtype
    chosen = auto_dtype(
        device_of(settings.device),
        base.transformer.config,
        base.task,
        trains_base=trains_base(spec),
    )
    earlier: dict[str, Any] = {}
    if settings.resume:
        # A damaged file is reported where the settings are compared.
        with suppress(OutputError):
            earlier = read_earlier_run(Path(settings.output))
    return earlier.get("base_dtype", dtype_name(chosen))


def _plan_memory(
    settings: TrainSpec, spec: Spec, base: MetaModel, batches: Batches, say: Say
) -> Description | None:
    """Return the plan of the run and print its summary; None if shapes alone do not give it.

    Raises:
        SpecError: the largest batch does not fit into the memory of this machine.
    """
    plan = make_plan(
        base, allocate_run_ranks(base, spec, settings), make_work(settings, base, spec, batches)
    )
    try:
        report = describe_plan(plan, this_machine(cpu=settings.device == "cpu"))
    except PlanError as error:
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


def _limit_seconds(settings: TrainSpec, base: MetaModel, batches: Batches) -> float:
    """Return the CPU seconds that a plan may take; the run is not thought slower than it can be."""
    passes = settings.epochs * batches.per_epoch
    if settings.steps:
        passes = settings.steps * settings.accumulate
    tokens = passes * sum(batches.lengths) / batches.per_epoch
    parameters = sum(parameter.numel() for parameter in base.model.parameters())
    is_gpu = device_of(settings.device).type == "cuda"
    seconds = OPERATIONS * parameters * tokens / (FASTEST_GPU if is_gpu else FASTEST_CPU)
    return max(PLAN_SECONDS, PLAN_SHARE * seconds)
