"""The plan as `lorakit plan` gives it, and the one line of it that training prints before it
starts.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lorakit.data.batches import Batches
from lorakit.data.encode import Example, infer_task, list_labels
from lorakit.data.rows import Rows, read_rows
from lorakit.errors import SpecError
from lorakit.models.load import Loaded, auto_dtype, load_tokenizer
from lorakit.models.open import encode_rows
from lorakit.models.packing import packing_obstacle
from lorakit.plan import devices
from lorakit.plan.estimate import Plan, Work, make_plan
from lorakit.plan.meta_model import MetaModel, load_meta_model
from lorakit.plan.trace import AUTOCAST
from lorakit.ranks.allocate import BY_DATA, SUGGESTED, allocate_ranks, count_rank_costs
from lorakit.spec import Spec
from lorakit.text import format_bytes, format_duration

LENGTH = 512  # tokens, where nothing says otherwise: training's own default


def make_report(asked: Any, run: Any, spec: Spec) -> dict[str, Any]:
    """Return the plan as JSON holds it.

    Args:
        asked: model, data, columns, quotes, loss_on, task, device and teraflops, as the command has
            them.
        run: the settings of training that count: max_length, batch_size, accumulate, dtypes,
            checkpointing, epochs, seed.
        spec: of the adapter.

    Raises:
        SpecError: no such device, or a rate that is none.
        ModelError: no such model, or a length that it does not take.
        DataError, TargetError: as in training.
    """
    if asked.teraflops is not None and not asked.teraflops > 0:
        raise SpecError(
            f"--teraflops: a number above 0 is needed, got {asked.teraflops:g}.",
            advice="Nothing was planned.",
        )
    device = devices.find_device(asked.device or devices.HERE)
    rows = read_rows(asked.data, columns=asked.columns, quotes=asked.quotes) if asked.data else None
    task = infer_task(rows, asked.task) if rows is not None else asked.task
    labels = list_labels(rows) if rows is not None and task == "classify" else []
    base = load_meta_model(asked.model, task, labels=len(labels) or 2)
    examples = tokenise_rows(base, rows, run.max_length, labels, asked.loss_on) if rows else None
    batches = make_batches(run, base, examples) if examples else None
    plan = make_plan(base, allocate_run_ranks(base, spec, run), make_work(run, base, spec, batches))
    out = {**describe_plan(plan, device), **_time(plan, device, run, batches, asked.teraflops)}
    chosen = devices.all_devices() if asked.device is None else [device]
    table = [
        {"device": d.name, "size": d.size, "usable": d.usable, "methods": plan.fits(d)}
        for d in (chosen if base.runs else ())
    ]
    out |= {
        "devices": table,
        "fits": {d["device"]: d["methods"]["lora"]["batch"] for d in table},
        "ranks": plan.ranks(plan.work.dtype(device.gpu)),
        "others": plan.other_methods(),
        "spec": plan.spec.to_dict(),
        "notes": _notes(plan, run, table, batches),
    }
    out["summary"] = summarise(out)
    return out


def describe_plan(plan: Plan, device: devices.Device) -> dict[str, Any]:
    """Return counts and memory of a plan on one device."""
    work, dtype = plan.work, plan.work.dtype(device.gpu)
    return {
        "model": plan.base.name,
        "task": plan.base.task,
        "device": device.name,
        "usable_bytes": device.usable,
        "trainable_parameters": plan.adapter.parameters_count,
        "total_parameters": plan.coverage.total_parameters,
        "base_parameters": plan.base_parameters,
        "adapted_modules": len(plan.coverage.modules),
        "coverage": str(plan.coverage),
        "adapter_bytes": plan.adapter_bytes(dtype).file,
        "base_dtype": str(dtype).removeprefix("torch."),
        "batch": work.batch,
        "length": work.length,
        "memory": plan.memory(gpu=device.gpu),
    }


def summarise(out: dict[str, Any]) -> str:
    """Return the plan in one line."""
    peak, usable = out["memory"]["peak"], out["usable_bytes"]
    text = (
        f"plan: {out['trainable_parameters']:,} of {out['total_parameters']:,} parameters train, "
        f"an adapter file of {format_bytes(out['adapter_bytes'])}, the base in {out['base_dtype']}"
    )
    if peak is not None:
        text += (
            f"; {out['batch']} x {out['length']:,} tokens need {format_bytes(peak)} "
            f"of the {format_bytes(usable)} that {out['device']} has for tensors"
        )
    if out.get("seconds_per_step") is not None:
        text += f"; about {format_duration(out['seconds_per_step'])} a step"
    if out.get("seconds_per_epoch") is not None:
        text += f", {format_duration(out['seconds_per_epoch'])} an epoch"
    return text


def allocate_run_ranks(base: MetaModel, spec: Spec, run: Any) -> Spec:
    """Return the spec with its rank where --ranks and --rank-budget of a run put it, as far as
    shapes tell.

    What looks at data spends the same number of values: it is spread evenly here.

    Raises:
        SpecError: a budget that is too small, or a delta whose ranks are not counted by A and B.
    """
    if run.ranks == "even" and run.rank_budget is None:
        return spec
    budget = run.rank_budget
    if run.ranks == SUGGESTED and budget is None:
        budget = count_rank_costs(base.model, spec, None)[2] // 2
    return allocate_ranks(
        base.model, spec, shape="even" if run.ranks in BY_DATA else run.ranks, budget=budget
    )


def make_batches(run: Any, base: MetaModel, examples: Sequence[Example]) -> Batches:
    """Return the batches of a run; packed where nothing of the model's shape speaks against it.

    Raises:
        SpecError: fewer tokens a batch than the longest row has.
    """
    lengths = [len(e.ids) for e in examples]
    if run.batch_tokens is not None and run.batch_tokens < max(lengths):
        raise SpecError(
            f"batch_tokens: {run.batch_tokens:,} asked, the longest row has {max(lengths):,} tokens.",
            advice="Raise it, or lower --max-length. Nothing was started.",
        )
    packed = (
        run.packing != "off"
        and base.task == "causal-lm"
        and base.runs
        and packing_obstacle(base.model, max(lengths)) is None
    )
    return Batches(lengths, run.batch_size, run.seed, run.batch_tokens, packed=packed)


def make_work(run: Any, base: MetaModel, spec: Spec, batches: Batches | None) -> Work:
    """Return what a run does at once: the largest of its batches, or without rows the largest that
    there could be.
    """
    sizes: dict[str, Any] = {
        "batch": run.batch_size,
        "length": run.max_length or min(LENGTH, base.max_length or LENGTH),
    }
    if batches is not None:
        k = batches.longest(0, batches.per_epoch)
        rows, width = batches.shape(k)
        sizes = {
            "batch": rows,
            "length": width,
            "padded": any(batches.lengths[i] != width for i in batches[k]),
        }
        if batches.packed:
            sizes |= {"packed": tuple(batches.lengths[i] for i in batches[k])}
    auto = torch.float32
    if base.runs:
        auto = auto_dtype(
            torch.device("cpu"), base.model.config, base.task, trains_base=trains_base(spec)
        )
    return Work(
        **sizes,
        accumulate=run.accumulate,
        base_dtype=run.base_dtype,
        auto=auto,
        mixed=run.mixed_precision,
        checkpointing=run.checkpointing,
    )


def trains_base(spec: Spec) -> bool:
    """Tell whether parameters of the base train as they are, in its dtype."""
    return spec.bias != "none" or bool(spec.full_modules)


def tokenise_rows(
    base: MetaModel,
    rows: Rows,
    max_length: int | None,
    labels: Sequence[str],
    loss_on: str,
    tokenizer: Any = None,
) -> list[Example]:
    """Return the rows as training would read them; of the model the tokenizer alone is loaded,
    where it is not given.
    """
    if tokenizer is None:
        tokenizer = load_tokenizer(base.name, advice="Without --data no tokenizer is needed.")
    most = int(min(tokenizer.model_max_length, base.max_length or 1 << 30))
    return encode_rows(
        rows,
        Loaded(base.model, tokenizer, base.task, list(labels), base.name, (), most),
        max_length,
        loss_on,
    )


def _time(
    plan: Plan, device: devices.Device, run: Any, batches: Batches | None, teraflops: float | None
) -> dict[str, Any]:
    """Return seconds a step and an epoch; None where no rate is known or no rows are given."""
    none = {"seconds_per_step": None, "seconds_per_epoch": None, "flops_per_second": None}
    if not plan.base.runs or (teraflops is None and device.name != devices.HERE):
        return none
    dtype, config = (
        AUTOCAST.get(plan.work.mixed, plan.work.dtype(device.gpu)),
        plan.base.model.config.get_text_config(),
    )
    tokens = plan.work.batch * plan.work.length
    rate = (
        devices.Rate(teraflops * 1e12)
        if teraflops is not None
        else devices.measure_rate(getattr(config, "hidden_size", 512), tokens, dtype)
    )
    if batches is None:
        return {
            **none,
            "seconds_per_step": plan.seconds(rate, gpu=device.gpu),
            "flops_per_second": rate.flops,
        }
    shapes = [batches.shape(k) for k in range(batches.per_epoch)]
    width = round(
        sum(batches.width(k) for k in range(batches.per_epoch)) / sum(n for n, _ in shapes)
    )
    mean = plan.seconds(rate, gpu=device.gpu, batch=max(n for n, _ in shapes), length=max(width, 2))
    # Passes, not steps: what is left over at the end of an epoch is a pass too.
    epoch = mean / run.accumulate * sum(n for n, _ in shapes) / max(n for n, _ in shapes)
    return {"seconds_per_step": mean, "seconds_per_epoch": epoch, "flops_per_second": rate.flops}


def _notes(plan: Plan, run: Any, table: list[dict[str, Any]], batches: Batches | None) -> list[str]:
    notes = []
    if run.ranks in BY_DATA:
        notes.append(
            f"--ranks {run.ranks} looks at data and weights: its values are counted as if spread evenly"
        )
    if plan.spec.delta == "adalora":
        notes.append(
            "adalora: counted at the ranks that it starts with; the file holds those that are left at the end"
        )
    if not plan.base.runs:
        notes.append(
            "headers tell shapes alone: activations, peak, time and what fits need the model's config.json"
        )
    if table:
        notes.append(
            "full: weights, gradients and moments in float32, computing in 16 bits on a GPU"
        )
        notes.append(
            "8-bit and 4-bit base: its linear layers but the head, as bitsandbytes stores them"
        )
    if batches is None:
        notes.append("without --data every sequence is taken to be as long as it may be")
    return notes
