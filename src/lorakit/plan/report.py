"""The plan as `lorakit plan` prints it, and its summary, which training prints before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict

import torch

from lorakit.data.batches import Batches
from lorakit.data.encode import Example
from lorakit.data.on_demand import count_tokens, find_longest
from lorakit.data.rows import Rows, read_for
from lorakit.data.template_files import check_use, set_template
from lorakit.errors import NOT_STARTED, SpecError
from lorakit.evaluate.regularisation import Regularisation
from lorakit.models.load import LONGEST, Loaded, auto_dtype
from lorakit.models.open import DEFAULT_LENGTH, choose_max_length
from lorakit.models.own_tokenizer import take_own_tokenizer
from lorakit.models.packing import packing_obstacle
from lorakit.models.read import load_tokenizer
from lorakit.plan import devices
from lorakit.plan.config import PlanRequest
from lorakit.plan.estimate import Memory, Plan, RankRow, Work, make_plan
from lorakit.plan.fits import find_fits
from lorakit.plan.meta_model import MetaModel, load_meta_model
from lorakit.plan.reach import leave_out_unreached
from lorakit.plan.trace import AUTOCAST
from lorakit.ranks.allocate import BY_DATA, SUGGESTED, allocate_ranks, count_rank_costs
from lorakit.spec import Spec
from lorakit.tasks.find import find_task
from lorakit.tasks.rows import choose_task, encode_for_training
from lorakit.text import dtype_name, format_bytes, format_duration


class RunSettings(Protocol):
    """The settings of a training run that a plan depends on: fields of TrainSpec."""

    @property
    def max_length(self) -> int | None: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def batch_tokens(self) -> int | None: ...
    @property
    def packing(self) -> str: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def base_dtype(self) -> str: ...
    @property
    def mixed_precision(self) -> str: ...
    @property
    def checkpointing(self) -> str: ...
    @property
    def optimizer(self) -> str: ...
    @property
    def r_drop(self) -> float: ...
    @property
    def cutoff(self) -> float: ...
    @property
    def ranks(self) -> str: ...
    @property
    def rank_budget(self) -> int | None: ...
    @property
    def seed(self) -> int: ...


class Description(TypedDict):
    """Counts and memory of a plan on one device, as JSON holds them."""

    model: str
    task: str
    device: str
    usable_bytes: int
    trainable_parameters: int
    total_parameters: int
    base_parameters: int
    adapted_modules: int
    coverage: str
    adapter_bytes: int
    base_dtype: str
    mixed_precision: str
    batch: int
    length: int
    memory: Memory


class DeviceRow(TypedDict):
    """The largest sizes that fit on one device, as JSON holds them."""

    device: str
    size: int
    usable: int
    methods: dict[str, dict[str, int]]


class Report(Description):
    """The whole plan, as JSON holds it."""

    seconds_per_step: float | None
    seconds_per_epoch: float | None
    flops_per_second: float | None
    devices: list[DeviceRow]
    fits: dict[str, int]
    ranks: list[RankRow]
    others: dict[str, int]
    spec: dict[str, object]
    notes: list[str]
    summary: str


class Times(NamedTuple):
    """Seconds of a step and of an epoch, and the rate of products; None if they are not known."""

    step: float | None = None
    epoch: float | None = None
    flops: float | None = None


@dataclass(frozen=True)
class Planned:
    """A plan with the batches of its rows, if it has rows."""

    plan: Plan
    batches: Batches | None


def make_report(request: PlanRequest, run: RunSettings, spec: Spec) -> Report:
    """Return the plan as JSON holds it.

    Args:
        request: model, data and device.
        run: the settings of training.
        spec: spec of the adapter.

    Raises:
        SpecError: no such device, or a rate that is not above 0.
        ModelError: no such model, or a length that it does not take.
        DataError, TargetError: as in training.
    """
    if request.teraflops is not None and not request.teraflops > 0:
        raise SpecError(
            f"--teraflops: a number above 0 is needed, got {request.teraflops:g}.",
            advice="Nothing was planned.",
        )
    device = devices.find_device(request.device or devices.HERE)
    planned = _plan(request, run, spec)
    plan = planned.plan
    description = describe_plan(plan, device)
    times = _time(planned, device, run, request.teraflops)
    chosen = devices.all_devices() if request.device is None else [device]
    rows = [_device_row(plan, one) for one in chosen] if plan.base.runs else []
    report = Report(
        **description,
        seconds_per_step=times.step,
        seconds_per_epoch=times.epoch,
        flops_per_second=times.flops,
        devices=rows,
        fits={row["device"]: row["methods"]["lora"]["batch"] for row in rows},
        ranks=plan.ranks(plan.work.dtype(device.gpu, device.bfloat16)),
        others=plan.other_methods(),
        spec=plan.spec.to_dict(),
        notes=_notes(planned, run, with_devices=bool(rows)),
        summary="",
    )
    report["summary"] = summarise(report)
    return report


def _plan(request: PlanRequest, run: RunSettings, spec: Spec) -> Planned:
    rows = None
    task = request.task
    labels: list[str] = []
    if request.data:
        rows = read_for(request, request.data)
        task = choose_task(
            rows, request.task, request.model, trust_remote_code=request.trust_remote_code
        )
        labels = find_task(task).list_classes(rows)
    base = load_meta_model(
        request.model,
        task,
        labels=len(labels) or 2,
        trust_remote_code=request.trust_remote_code,
    )
    batches, examples = None, ()
    if rows:
        examples = tokenise_rows(
            base, rows, run.max_length, labels, request.loss_on, request.template
        )
        batches = make_batches(run, base, examples) if examples else None
    spec, left_out = leave_out_unreached(base, spec)
    allocated = allocate_run_ranks(base, spec, run)
    work = make_work(run, base, spec, batches, examples)
    return Planned(make_plan(base, allocated, work, left_out), batches)


def _device_row(plan: Plan, device: devices.Device) -> DeviceRow:
    return DeviceRow(
        device=device.name,
        size=device.size,
        usable=device.usable,
        methods=find_fits(plan, device),
    )


def describe_plan(plan: Plan, device: devices.Device) -> Description:
    """Return counts and memory of a plan on one device."""
    dtype = plan.work.dtype(device.gpu, device.bfloat16)
    return Description(
        model=plan.base.name,
        task=plan.base.task,
        device=device.name,
        usable_bytes=device.usable,
        trainable_parameters=plan.adapter.parameters_count,
        total_parameters=plan.coverage.total_parameters,
        base_parameters=plan.base_parameters,
        adapted_modules=len(plan.coverage.modules),
        coverage=str(plan.coverage),
        adapter_bytes=plan.adapter_bytes(dtype).file,
        base_dtype=dtype_name(dtype),
        mixed_precision=plan.work.autocast(device.gpu, device.bfloat16),
        batch=plan.work.batch,
        length=plan.work.length,
        memory=plan.memory(gpu=device.gpu, bfloat16=device.bfloat16),
    )


def summarise(report: Description | Report) -> str:
    """Return the plan in one line."""
    text = (
        f"plan: {report['trainable_parameters']:,} of {report['total_parameters']:,} parameters "
        f"train, an adapter file of {format_bytes(report['adapter_bytes'])}, "
        f"the base in {report['base_dtype']}"
    )
    if report["mixed_precision"] == "fp16":
        text += ", autocast in float16 with a scaled loss"
    peak = report["memory"]["peak"]
    if peak is not None:
        text += (
            f"; {report['batch']} x {report['length']:,} tokens need {format_bytes(peak)} "
            f"of the {format_bytes(report['usable_bytes'])} that {report['device']} has for tensors"
        )
    step = report.get("seconds_per_step")
    if step is not None:
        text += f"; about {format_duration(step)} a step"
    epoch = report.get("seconds_per_epoch")
    if epoch is not None:
        text += f", {format_duration(epoch)} an epoch"
    return text


def allocate_run_ranks(base: MetaModel, spec: Spec, run: RunSettings) -> Spec:
    """Return the spec with ranks by layer as a run's `ranks` and `rank_budget` ask, from shapes.

    An allocation that needs data spends the same number of values: here it is even.

    Raises:
        SpecError: a budget that is too small, or a delta whose ranks are not counted by A and B.
    """
    if run.ranks == "even" and run.rank_budget is None:
        return spec
    budget = run.rank_budget
    if run.ranks == SUGGESTED and budget is None:
        budget = count_rank_costs(base.model, spec, None)[2] // 2
    shape = "even" if run.ranks in BY_DATA else run.ranks
    return allocate_ranks(base.model, spec, shape=shape, budget=budget)


def make_batches(run: RunSettings, base: MetaModel, examples: Sequence[Example]) -> Batches:
    """Return the batches of a run; packed, unless the model's shape forbids it.

    Raises:
        SpecError: fewer tokens a batch than the longest row has.
    """
    lengths = count_tokens(examples)
    longest = find_longest(examples)
    if run.batch_tokens is not None and run.batch_tokens < longest:
        raise SpecError(
            f"batch_tokens: {run.batch_tokens:,} asked, the longest row has {longest:,} tokens.",
            advice=f"Raise it, or lower --max-length. {NOT_STARTED}",
        )
    may_pack = run.packing != "off" and base.task == "causal-lm" and base.runs
    packed = may_pack and packing_obstacle(base.transformer, longest) is None
    return Batches(lengths, run.batch_size, run.seed, run.batch_tokens, packed=packed)


def make_work(
    run: RunSettings,
    base: MetaModel,
    spec: Spec,
    batches: Batches | None,
    examples: Sequence[Example],
) -> Work:
    """Return the largest pass of a run: of its batches, or of the largest that there could be."""
    batch = run.batch_size
    length = run.max_length or choose_max_length(None, base.max_length or DEFAULT_LENGTH)
    padded = True
    packed: tuple[int, ...] = ()
    answer = length if base.task == "seq2seq" else 0
    if batches is not None:
        largest = batches.longest(0, batches.per_epoch)
        batch, length = batches.shape(largest)
        lengths = tuple(batches.lengths[index] for index in batches[largest])
        padded = any(one != length for one in lengths)
        packed = lengths if batches.packed else ()
        if answer:
            length, answer = _longest_parts([examples[index] for index in batches[largest]])
        elif base.task == "preference":
            batch, length = _shape_answers([examples[index] for index in batches[largest]])
    auto = torch.float32
    if base.runs:
        config = base.transformer.config
        cpu = torch.device("cpu")
        auto = auto_dtype(cpu, config, base.task, trains_base=trains_base(spec))
    return Work(
        batch=batch,
        length=length,
        answer=answer,
        padded=padded,
        packed=packed,
        accumulate=run.accumulate,
        base_dtype=run.base_dtype,
        auto=auto,
        trains_base=trains_base(spec) or base.task != "causal-lm",
        mixed=run.mixed_precision,
        checkpointing=run.checkpointing,
        optimizer=run.optimizer,
        regularisation=Regularisation(r_drop=run.r_drop, cutoff=run.cutoff),
    )


def trains_base(spec: Spec) -> bool:
    """Return True if parameters of the base train in full, in its dtype."""
    return spec.bias != "none" or bool(spec.full_modules)


def tokenise_rows(
    base: MetaModel,
    rows: Rows,
    max_length: int | None,
    labels: Sequence[str],
    loss_on: str,
    template: str | None = None,
    folder: Path | None = None,
) -> Sequence[Example]:
    """Return the rows as training reads them; only the tokenizer of the model is loaded.

    Args:
        base: the model.
        rows: rows of the data.
        max_length: tokens of a sequence; as in training where None.
        labels: class names, for classify.
        loss_on: completion or all.
        template: chat template: chatml, or a file; None for that of the model.
        folder: of an adapter, whose tokenizer and chat template are used if it has them.

    Raises:
        SpecError: the template cannot be read, or the rows are no conversations.
    """
    check_use(rows, template)
    tokenizer = load_tokenizer(
        base.name,
        advice="Without --data no tokenizer is needed.",
        trust_remote_code=base.trust_remote_code,
        template=template,
    )
    if folder is not None:
        tokenizer, _ = take_own_tokenizer(
            tokenizer, folder, trust_remote_code=base.trust_remote_code
        )
        if template is not None:
            set_template(tokenizer, template)
    longest = int(min(tokenizer.model_max_length, base.max_length or LONGEST))
    loaded = Loaded(base.transformer, tokenizer, base.task, list(labels), base.name, (), longest)
    return encode_for_training(rows, loaded, max_length, loss_on)


def _longest_parts(examples: Sequence[Example]) -> tuple[int, int]:
    """Return the most tokens that are read, and the most that are written."""
    read = max(len(example.ids) for example in examples)
    return read, max(len(example.answer) for example in examples)


def _shape_answers(examples: Sequence[Example]) -> tuple[int, int]:
    """Return the number of answers, and the most tokens of one with its prompt."""
    rejected = [example.rejected for example in examples if example.rejected]
    answers = [*examples, *rejected]
    return len(answers), max(len(answer.ids) for answer in answers)


def _time(
    planned: Planned, device: devices.Device, run: RunSettings, teraflops: float | None
) -> Times:
    plan, batches = planned.plan, planned.batches
    if not plan.base.runs or (teraflops is None and device.name != devices.HERE):
        return Times()
    rate = _rate(plan, device, teraflops)
    if batches is None:
        seconds = plan.seconds(rate, gpu=device.gpu, bfloat16=device.bfloat16)
        return Times(step=seconds, flops=rate.flops)
    passes = range(batches.per_epoch)
    counts = [batches.shape(index)[0] for index in passes]
    tokens = sum(batches.width(index) for index in passes)
    mean_length = max(2, round(tokens / sum(counts)))
    step = plan.seconds(
        rate,
        gpu=device.gpu,
        bfloat16=device.bfloat16,
        batch=max(counts),
        length=mean_length,
    )
    # Passes, not steps: the rest at the end of an epoch is a pass too.
    epoch = step / run.accumulate * sum(counts) / max(counts)
    return Times(step, epoch, rate.flops)


def _rate(plan: Plan, device: devices.Device, teraflops: float | None) -> devices.Rate:
    if teraflops is not None:
        return devices.Rate(teraflops * 1e12)
    mixed = plan.work.autocast(device.gpu, device.bfloat16)
    dtype = AUTOCAST.get(mixed, plan.work.dtype(device.gpu, device.bfloat16))
    width = getattr(plan.base.text_config, "hidden_size", 512)
    return devices.measure_rate(width, plan.work.batch * plan.work.length, dtype)


def _notes(planned: Planned, run: RunSettings, *, with_devices: bool) -> list[str]:
    plan = planned.plan
    notes = []
    if run.ranks in BY_DATA:
        notes.append(f"--ranks {run.ranks} needs data and weights: counted as if ranks were even")
    if plan.spec.delta == "adalora":
        notes.append("adalora: counted at the ranks of the start; the file holds those of the end")
    if not plan.base.runs:
        notes.append(
            "headers hold shapes alone: activations, peak, time and what fits need the model's "
            "config.json"
        )
    if with_devices:
        notes.append(
            "full: weights, gradients and moments in float32, computing in 16 bits on a GPU"
        )
        notes.append(
            "8-bit and 4-bit base: its linear layers but the head, as bitsandbytes stores them"
        )
    if planned.batches is None:
        notes.append("without --data every sequence is counted at the longest length")
    return notes
