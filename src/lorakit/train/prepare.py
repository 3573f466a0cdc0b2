"""A run up to its first step: rows read, planned, the model loaded, the adapter attached."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorakit.data.batches import Batches, collate
from lorakit.data.encode import Example, infer_task, list_labels
from lorakit.data.rows import Rows, read_rows
from lorakit.errors import DataError, PlanError, SpecError
from lorakit.inits.start import needs_batches
from lorakit.inject.attach import attach
from lorakit.inject.coverage import coverage
from lorakit.models.chunked_loss import chunking_obstacle
from lorakit.models.load import Loaded, auto_dtype, device_of, load, pad_id
from lorakit.models.open import encode_rows
from lorakit.models.packing import find_leak, packed_attention, packing_obstacle
from lorakit.models.tasks import TASKS
from lorakit.plan.devices import this_machine
from lorakit.plan.estimate import make_plan
from lorakit.plan.meta_model import MetaModel, load_meta_model
from lorakit.plan.report import (
    allocate_run_ranks,
    describe_plan,
    make_batches,
    make_work,
    summarise,
    tokenise_rows,
    trains_base,
)
from lorakit.plan.trace import AUTOCAST
from lorakit.ranks.allocate import BY_DATA, EXPLAINED, SUGGESTED, allocate_ranks
from lorakit.ranks.probe import select_layers
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.loop import Job, budget_of
from lorakit.train.optim import default_lr
from lorakit.train.output import RUN
from lorakit.train.report import versions

MOST_HELD_OUT = 2000  # rows
FIRST = 8  # batches that a start which looks at data is given


@dataclass
class PreparedRun:
    """A job with what the report says of where it came from."""

    job: Job
    loaded: Loaded
    facts: dict[str, Any]


def prepare_run(
    settings: TrainSpec, spec: Spec, say: Callable[[str], None] = lambda text: None
) -> PreparedRun:
    """Read the data, load the model, attach the adapter, tokenise; nothing is written."""
    rows = read_rows(settings.data, columns=settings.columns, quotes=settings.quotes)
    task = infer_task(rows, settings.task)
    # Before rows are held out: a rare label may be on one side alone.
    labels = list_labels(rows) if task == "classify" else []
    rows, held_out = _hold_out(rows, settings)
    if task == "classify" and len(labels) < 2:
        raise DataError(
            f"{settings.data} has one label only ({labels[0]!r}): there is nothing to tell apart."
        )
    if settings.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise SpecError(
            "mixed_precision: fp16 needs a GPU; on a CPU use bf16 or no.",
            advice="Nothing was started.",
        )
    if settings.target_rank is not None and spec.delta != "adalora":
        raise SpecError(
            f"target_rank: only delta='adalora' has a budget of ranks, asked for {spec.delta!r}.",
            advice="Nothing was started.",
        )
    if spec.dtype == "float16":
        raise SpecError(
            "dtype: Adam's steps are not finite in float16; train in float32 or bfloat16.",
            advice="Nothing was started.",
        )
    base = load_meta_model(settings.model, task, labels=len(labels) or 2)
    examples = tokenise_rows(base, rows, settings.max_length, labels, settings.loss_on)
    dtype = _base_dtype(settings, base, spec)
    planned = plan_first(replace(settings, base_dtype=dtype), spec, base, examples, say)
    say(
        f"Loading {settings.model} for {task}, {len(rows):,} rows to train on, {len(held_out) if held_out else 0:,} held out"
    )
    random.seed(settings.seed)
    loaded = load(
        settings.model, task, labels=labels, dtype=dtype, device=settings.device, seed=settings.seed
    )
    longest = min(512, loaded.max_length) if settings.max_length is None else settings.max_length
    held = encode_rows(held_out, loaded, longest, settings.loss_on) if held_out else []
    packed = _is_packed(loaded.model, examples, settings, task, say)
    spec = replace(
        spec,
        full_modules=(
            *spec.full_modules,
            *(m for m in loaded.new_modules if m not in spec.full_modules),
        ),
    )
    looks = settings.ranks in BY_DATA or needs_batches(spec)
    first = (
        _first(examples, settings, pad_id(loaded.tokenizer), next(loaded.model.parameters()).device)
        if looks
        else []
    )
    width = getattr(loaded.model.config.get_text_config(), "hidden_size", 768)
    lr = settings.lr if settings.lr is not None else default_lr(width)
    spec = _spread(loaded.model, spec, settings, first, lr)
    adapter = attach(
        loaded.model, spec, seed=settings.seed, batches=first if needs_batches(spec) else None
    )
    adapter.provenance |= {
        "base_model": loaded.name,
        "task_type": TASKS[task].peft_type,
        "task": task,
        "max_length": longest,
    }
    if labels:
        adapter.provenance["labels"] = labels
    covered = coverage(loaded.model)
    say(str(covered))
    cut = sum(e.cut > 0 for e in examples)
    if cut:
        say(
            f"note: {cut:,} of {len(rows):,} rows are longer than {longest} tokens and are cut; `lorakit preview` shows them"
        )
    job = Job(
        loaded.model,
        adapter,
        task,
        examples,
        held,
        pad_id(loaded.tokenizer),
        len(labels),
        settings,
        lr,
        Path(settings.output),
        packed,
    )
    if spec.delta == "adalora" and adapter.deltas:
        budget_of(adapter, settings, job.steps)  # refuses what it could not keep
    logits = _logits(job, say) if task == "causal-lm" else None
    shared = _shared(rows, held_out)
    if shared:
        say(f"note: {shared:,} held-out rows also stand in the training data")
    facts = {
        "model": settings.model,
        "model_name": loaded.name,
        "task": task,
        "labels": labels,
        "rows": len(rows),
        "rows_held_out": len(held_out or ()),
        "packed": packed,
        "logits": logits,
        "base_dtype": dtype,
        "rows_cut": cut,
        "rows_repeated": rows.repeated,
        "rows_shared": shared,
        "max_length": longest,
        "lr": lr,
        "trainable_parameters": covered.trainable_parameters,
        "total_parameters": covered.total_parameters,
        "adapted_modules": len(covered.modules),
        "coverage": covered.to_dict(),
        "spec": adapter.spec.to_dict(),
        "settings": settings.to_dict(),
        "seed": settings.seed,
        "base_fingerprint": adapter.provenance["base_fingerprint"],
        "data_hash": rows.content_hash(),
        "versions": versions(),
        "plan": planned,
    }
    return PreparedRun(job, loaded, facts)


def plan_first(
    settings: TrainSpec,
    spec: Spec,
    base: MetaModel,
    examples: Sequence[Example],
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Say in a line what the run will take, before any weight is loaded; None where shapes alone do
    not tell it.

    Raises:
        SpecError: its largest batch does not fit into the memory of this machine.
    """
    plan = make_plan(
        base,
        allocate_run_ranks(base, spec, settings),
        make_work(settings, base, spec, make_batches(settings, base, examples)),
    )
    try:
        told = describe_plan(plan, this_machine(cpu=settings.device == "cpu"))
    except PlanError as error:
        say(f"note: no plan: {error.message}")
        return None
    say(summarise(told))
    needs, has = told["memory"]["peak"], told["usable_bytes"]
    if needs > has and not settings.beyond_memory:
        parts = [f"{part}   {count:,} bytes" for part, count in told["memory"].items()]
        raise SpecError(
            f"The largest batch, {told['batch']} sequences of {told['length']:,} tokens, needs {needs:,} bytes; "
            f"this machine has {has:,} for tensors.",
            parts,
            "Lower --batch-size (--accumulate makes up for it) or --max-length, or give --gradient-checkpointing; "
            "--beyond-memory starts all the same. Nothing was started.",
        )
    return told


def _spread(
    model: Any, spec: Spec, settings: TrainSpec, first: list[dict[str, Any]], lr: float
) -> Spec:
    """Return the spec with its rank where the settings want it."""
    if settings.ranks == SUGGESTED:
        return select_layers(model, spec, first, budget=settings.rank_budget, lr=lr / 3)
    if settings.ranks == "even" and settings.rank_budget is None:
        return spec
    looks = first if settings.ranks == EXPLAINED else None
    return allocate_ranks(
        model, spec, shape=settings.ranks, budget=settings.rank_budget, batches=looks
    )


def _is_packed(
    model: Any,
    examples: Sequence[Example],
    settings: TrainSpec,
    task: str,
    say: Callable[[str], None],
) -> bool:
    """Tell whether rows are packed, as asked, and as the model is seen to take them.

    Raises:
        SpecError: packing was asked for, or batches by tokens, and cannot be done.
    """
    if settings.packing == "off":
        return False
    longest = max(len(e.ids) for e in examples)
    why = (
        "rows are packed for causal-lm alone"
        if task != "causal-lm"
        else packing_obstacle(model, longest)
    )
    if why is None:
        with packed_attention(model):
            why = find_leak(model)
    if why is not None and (settings.packing == "on" or settings.batch_tokens is not None):
        asked = "packing" if settings.packing == "on" else "batch_tokens"
        raise SpecError(
            f"{asked}: the rows of {settings.data} cannot be packed for {type(model).__name__}: {why}.",
            advice="Leave it out: rows are padded then. Nothing was started.",
        )
    if why is not None and task == "causal-lm":
        say(f"note: rows are padded, not packed: {why}")
    return why is None


def _first(
    examples: Sequence[Example], settings: TrainSpec, pad: int, device: torch.device
) -> list[dict[str, Any]]:
    """Return the batches that the run begins with, as the model is called with them for a loss."""
    order = Batches(
        [len(e.ids) for e in examples], settings.batch_size, settings.seed, settings.batch_tokens
    )
    return [
        collate([examples[i] for i in order[k]], pad, device)
        for k in range(min(FIRST, order.per_epoch))
    ]


def _logits(job: Job, say: Callable[[str], None]) -> str:
    """Return whether the loss is taken in chunks; where it is not, say so, with what that takes."""
    ids, mixed = job.batch(job.examples[:1])["input_ids"], job.settings.mixed_precision
    with torch.autocast(ids.device.type, AUTOCAST.get(mixed), enabled=mixed in AUTOCAST):
        why = chunking_obstacle(job.model, ids)
    if why is None:
        return "in chunks"
    k = job.batches.longest(0, job.batches.per_epoch)
    rows, length = job.batches.shape(k)
    size = 4 * job.batches.width(k) * job.model.config.get_text_config().vocab_size
    say(
        f"note: the loss is taken of all logits at once, not in chunks: {why}; those of the largest batch, {rows} sequences of "
        f"{length:,} tokens, take {size:,} bytes in float32"
    )
    return f"all at once: {why}"


def _base_dtype(settings: TrainSpec, base: MetaModel, spec: Spec) -> str:
    """Return the dtype of the base: as asked, else as the run took it that is resumed, wherever it
    goes on, else by rule.
    """
    if settings.base_dtype != "auto":
        return settings.base_dtype
    try:
        earlier = json.loads((Path(settings.output) / RUN).read_text()) if settings.resume else {}
    except ValueError:  # damaged: what compares the settings says so
        earlier = {}
    chosen = auto_dtype(
        device_of(settings.device), base.model.config, base.task, trains_base=trains_base(spec)
    )
    return earlier.get("base_dtype", _name(chosen))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _hold_out(rows: Rows, settings: TrainSpec) -> tuple[Rows, Rows | None]:
    """Return what is trained on and what is held out: other data, a builtin's test part, or rows
    drawn by the seed.
    """
    if settings.eval_data or settings.data.startswith("builtin:"):
        source = settings.eval_data or settings.data
        return rows, read_rows(
            source, columns=settings.columns, quotes=settings.quotes, split="test"
        )
    # A handful of rows is still measured on one of them; of fewer, none can be spared.
    least = 1 if settings.eval_fraction and len(rows) >= 5 else 0
    count = min(MOST_HELD_OUT, max(least, round(settings.eval_fraction * len(rows))))
    if not count:
        return rows, None
    order = torch.randperm(
        len(rows), generator=torch.Generator().manual_seed(settings.seed)
    ).tolist()
    return rows.take(sorted(order[count:])), rows.take(sorted(order[:count]))


def _shared(rows: Rows, held_out: Rows | None) -> int:
    seen = {json.dumps(row, sort_keys=True) for row in rows.rows}
    return sum(json.dumps(row, sort_keys=True) in seen for row in held_out.rows) if held_out else 0
