"""The four steps before a run: read the data, plan, load the model, make the job."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.adapter import Adapter
from lorakit.data.batches import Batches, collate
from lorakit.data.encode import Example
from lorakit.data.on_demand import count_cut, count_tokens, find_longest
from lorakit.data.template_files import set_template, used_template
from lorakit.errors import NOT_STARTED, SpecError
from lorakit.evaluate.regularisation import find_obstacle
from lorakit.inits.start import needs_batches
from lorakit.inject.attach import attach
from lorakit.inject.coverage import Coverage, coverage
from lorakit.models.chunked_loss import chunking_obstacle
from lorakit.models.load import Loaded, load, pad_id
from lorakit.models.open import choose_max_length, use_own_tokenizer
from lorakit.models.packing import find_leak, packed_attention, packing_obstacle
from lorakit.models.tasks import TASKS
from lorakit.plan.trace import AUTOCAST
from lorakit.ranks.allocate import BY_DATA, EXPLAINED, SUGGESTED, allocate_ranks
from lorakit.ranks.probe import select_layers
from lorakit.spec import Spec
from lorakit.tasks.preference import Preference, switch_dropout_off
from lorakit.tasks.rows import encode_rows
from lorakit.train.budget import make_budget
from lorakit.train.config import TrainSpec
from lorakit.train.data import RunData, read_data
from lorakit.train.job import Job
from lorakit.train.log import Say
from lorakit.train.optim import default_lr
from lorakit.train.origin import Origin, attach_origin, read_origin
from lorakit.train.planning import RunPlan, plan_run
from lorakit.train.rehearsal import unchanged
from lorakit.train.report import RunFacts, versions
from lorakit.train.request import check_request

FIRST_BATCHES = 8  # given to inits and rank allocations that look at data
DEFAULT_WIDTH = 768  # of a config that does not name its width
PROBE_DIVISOR = 3  # of the learning rate, while layers are selected


@dataclass(frozen=True)
class LoadedRun:
    """The model of a run with the adapter attached, and the tokenised data.

    Attributes:
        base: the model and its tokenizer.
        adapter: the attached adapter.
        coverage: the layers that are adapted.
        examples: sequences to train on.
        held_out: sequences to evaluate on.
        max_length: tokens of a sequence at most.
        lr: peak learning rate.
        packed: True if the sequences of a batch are concatenated instead of padded.
        mixed_precision: dtype of autocast: no, bf16 or fp16.
    """

    base: Loaded
    adapter: Adapter
    coverage: Coverage
    examples: Sequence[Example]
    held_out: Sequence[Example]
    max_length: int
    lr: float
    packed: bool
    mixed_precision: str

    @property
    def cut_rows(self) -> int:
        """Number of examples that were cut to `max_length`."""
        return count_cut(self.examples)


@dataclass(frozen=True)
class PreparedRun:
    """A job that is ready to train, with the facts that its report begins with."""

    job: Job
    loaded: Loaded
    facts: RunFacts


def prepare_run(settings: TrainSpec, spec: Spec, say: Say = lambda message: None) -> PreparedRun:
    """Read the data, plan the run, load the model and attach the adapter; nothing is written.

    Args:
        settings: settings of the run.
        spec: spec of the adapter.
        say: called with each message for the user.

    Raises:
        LorakitError: a request that cannot be met.
    """
    origin = read_origin(settings, spec, say)
    data = read_data(settings)
    if origin:
        spec = origin.adapter.spec
        if origin.has_classes_of(data.task, data.labels):
            data = replace(data, labels=origin.facts["labels"])  # in the order of its outputs
    check_request(settings, spec, data.task, data.kinds)
    say(data.described)
    plan = plan_run(settings, spec, data, say)
    loaded = load_run(settings, data, plan, origin, say)
    job = make_job(settings, data, loaded)
    _say_if_unpadded(job, say)
    logits = _describe_logits(job, loaded.base, say) if data.task == "causal-lm" else None
    shared = data.count_shared()
    if shared:
        say(f"note: {shared:,} held-out rows are in the training data too")
    covered = loaded.coverage
    facts: RunFacts = {
        "model": settings.model,
        "model_name": loaded.base.name,
        "task": data.task,
        "labels": data.labels,
        "rows": len(data.rows),
        "rows_held_out": data.held_out_count,
        "packed": loaded.packed,
        "logits": logits,
        "base_dtype": plan.base_dtype,
        "mixed_precision": plan.mixed_precision,
        "rows_cut": loaded.cut_rows,
        "rows_repeated": data.rows.repeated - data.copies,
        "rows_shared": shared,
        "max_length": loaded.max_length,
        "lr": loaded.lr,
        "trainable_parameters": covered.trainable_parameters,
        "total_parameters": covered.total_parameters,
        "adapted_modules": len(covered.modules),
        "coverage": covered.to_dict(),
        "spec": loaded.adapter.spec.to_dict(),
        "settings": settings.to_dict(),
        "seed": settings.seed,
        "base_fingerprint": loaded.adapter.provenance["base_fingerprint"],
        "data_hash": data.rows.content_hash(),
        "versions": versions(),
        "plan": plan.report,
        "started_from": origin.facts if origin else None,
    }
    return PreparedRun(job, loaded.base, facts)


def _say_if_unpadded(job: Job, say: Say) -> None:
    if job.unpadded:
        say(
            f"note: padding changes what {type(job.model).__name__} says of a row: each pass takes "
            "rows of one length, and nothing is padded"
        )


def load_run(
    settings: TrainSpec, data: RunData, plan: RunPlan, origin: Origin | None, say: Say
) -> LoadedRun:
    """Load the model, attach the adapter, and tokenise the held-out rows.

    Raises:
        LorakitError: a model that cannot be loaded, or an adapter or packing that it does not take.
    """
    say(
        f"Loading {settings.model} for {data.task}, {len(data.rows):,} rows to train on, "
        f"{data.held_out_count:,} held out"
    )
    random.seed(settings.seed)
    base = _load_base(settings, data, plan, say)
    if data.task == Preference.name:
        switch_dropout_off(base.model)
    max_length = choose_max_length(settings.max_length, base.max_length)
    held_out = []
    if data.held_out:
        held_out = encode_rows(data.held_out, base, max_length, settings.loss_on)
    packed = _is_packed(base, plan.examples, settings, say)
    lr = settings.lr
    if lr is None:
        config = base.model.config.get_text_config()
        lr = default_lr(getattr(config, "hidden_size", DEFAULT_WIDTH))
    if origin:
        adapter = attach_origin(origin, base, settings, say)
    else:
        adapter = _attach_adapter(base, plan.spec, settings, plan.examples, lr)
    adapter.left_out |= plan.left_out
    adapter.provenance |= _provenance(base, data, max_length, settings)
    covered = coverage(base.model)
    loaded = LoadedRun(
        base,
        adapter,
        covered,
        plan.examples,
        held_out,
        max_length,
        lr,
        packed,
        plan.mixed_precision,
    )
    say(str(covered))
    if loaded.cut_rows:
        say(
            f"note: {loaded.cut_rows:,} of {len(data.rows):,} rows are longer than {max_length} "
            "tokens and are cut; `lorakit preview` shows them"
        )
    return loaded


def _load_base(settings: TrainSpec, data: RunData, plan: RunPlan, say: Say) -> Loaded:
    """Load the model, with the tokenizer and the chat template of the adapter to go on from."""
    base = load(
        settings.model,
        data.task,
        labels=data.labels,
        dtype=plan.base_dtype,
        device=settings.device,
        seed=settings.seed,
        trust_remote_code=settings.trust_remote_code,
        template=settings.template,
    )
    if settings.adapter:
        folder, trusted = Path(settings.adapter), settings.trust_remote_code
        use_own_tokenizer(base, folder, say, trust_remote_code=trusted)
        if settings.template is not None:
            set_template(base.tokenizer, settings.template)
    return base


def _provenance(
    base: Loaded, data: RunData, max_length: int, settings: TrainSpec
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "base_model": base.name,
        "task_type": TASKS[data.task].peft_type,
        "task": data.task,
        "max_length": max_length,
    }
    if data.labels:
        facts["labels"] = data.labels
    if data.task == Preference.name:
        facts |= {"loss": settings.loss, "beta": settings.beta}
    return facts


def _is_packed(base: Loaded, examples: Sequence[Example], settings: TrainSpec, say: Say) -> bool:
    """Return True if rows are packed: where the settings allow it and the model keeps them apart.

    Raises:
        SpecError: the settings need packing, and it cannot be done.
    """
    if settings.packing == "off":
        return False
    obstacle = _find_packing_obstacle(base, find_longest(examples))
    if obstacle is None:
        return True
    if settings.packing == "on" or settings.batch_tokens is not None:
        setting = "packing" if settings.packing == "on" else "batch_tokens"
        raise SpecError(
            f"{setting}: the rows of {settings.data} cannot be packed for "
            f"{type(base.model).__name__}: {obstacle}.",
            advice=f"Leave it out: rows are padded then. {NOT_STARTED}",
        )
    if base.task == "causal-lm":
        say(f"note: rows are padded, not packed: {obstacle}")
    return False


def _find_packing_obstacle(base: Loaded, longest: int) -> str | None:
    """Return why rows cannot be packed for a model, or None."""
    if base.task != "causal-lm":
        return "rows are packed for causal-lm alone"
    obstacle = packing_obstacle(base.model, longest)
    if obstacle is not None:
        return obstacle
    with packed_attention(base.model):
        return find_leak(base.model)


def _attach_adapter(
    base: Loaded, spec: Spec, settings: TrainSpec, examples: Sequence[Example], lr: float
) -> Adapter:
    """Attach a new adapter with its ranks allocated; a new head of the model trains in full."""
    new_modules = [name for name in base.new_modules if name not in spec.full_modules]
    spec = replace(spec, full_modules=(*spec.full_modules, *new_modules))
    first: list[dict[str, Any]] = []
    if settings.ranks in BY_DATA or needs_batches(spec):
        first = _first_batches(base, examples, settings)
    spec = _allocate(base.model, spec, settings, first, lr)
    batches = first if needs_batches(spec) else None
    return attach(base.model, spec, seed=settings.seed, batches=batches)


def _first_batches(
    base: Loaded, examples: Sequence[Example], settings: TrainSpec
) -> list[dict[str, Any]]:
    """Return the first batches of the run, as the model is called with them for a loss."""
    lengths = count_tokens(examples)
    order = Batches(lengths, settings.batch_size, settings.seed, settings.batch_tokens)
    device, pad = next(base.model.parameters()).device, pad_id(base.tokenizer, base.model)
    batches = []
    for index in range(min(FIRST_BATCHES, order.per_epoch)):
        chosen = [examples[i] for i in order[index]]
        batch = collate(chosen, pad, device)
        batches.append({name: value for name, value in batch.items() if name != "rated"})
    return batches


def _allocate(
    model: nn.Module, spec: Spec, settings: TrainSpec, first: list[dict[str, Any]], lr: float
) -> Spec:
    """Return the spec with the ranks of layers that `settings.ranks` gives."""
    shape, budget = settings.ranks, settings.rank_budget
    if shape == SUGGESTED:
        return select_layers(model, spec, first, budget=budget, lr=lr / PROBE_DIVISOR)
    if shape == "even" and budget is None:
        return spec
    batches = first if shape == EXPLAINED else None
    return allocate_ranks(model, spec, shape=shape, budget=budget, batches=batches)


def make_job(settings: TrainSpec, data: RunData, loaded: LoadedRun) -> Job:
    """Return the job of the loop.

    Raises:
        SpecError: a rank budget that AdaLoRA cannot keep, or two passes that do not differ.
    """
    job = Job(
        loaded.base.model,
        loaded.adapter,
        data.task,
        loaded.examples,
        loaded.held_out,
        pad_id(loaded.base.tokenizer, loaded.base.model),
        data.labels,
        settings,
        loaded.lr,
        Path(settings.output),
        loaded.packed,
        used_template(data.rows, loaded.base.tokenizer),
        tuple(loaded.base.tokenizer.all_special_ids),
        loaded.mixed_precision,
    )
    make_budget(loaded.adapter, settings, job.steps)  # Refuses a budget that it cannot keep.
    _check_passes(job)
    return job


def _check_passes(job: Job) -> None:
    """Check that the second pass of R-Drop and cutoff differs from the first.

    Raises:
        SpecError: it would be equal.
    """
    if job.regularisation.passes == 1:
        return
    # Its effect on the output is zero as long as B is.
    has_dropout = any(delta.dropout for delta in job.adapter.deltas.values())
    if has_dropout and not job.regularisation.cutoff:
        return
    with unchanged(job.model, []), job.attention():
        batch = job.collate(job.examples[:1])
        obstacle = find_obstacle(job.model, batch, job.task, job.regularisation)
    if obstacle is not None:
        raise SpecError(f"{obstacle}.", advice=NOT_STARTED)


def _describe_logits(job: Job, base: Loaded, say: Say) -> str:
    """Describe how the loss is computed; say so if it takes the memory of all logits at once."""
    ids = job.collate(job.examples[:1])["input_ids"]
    mixed = job.mixed_precision
    with torch.autocast(ids.device.type, AUTOCAST.get(mixed), enabled=mixed in AUTOCAST):
        obstacle = chunking_obstacle(job.model, ids)
    if job.regularisation.r_drop:
        obstacle = "R-Drop compares those of two passes"
    if obstacle is None:
        return "in chunks"
    index = job.batches.longest(0, job.batches.per_epoch)
    rows, length = job.batches.shape(index)
    vocabulary = base.model.config.get_text_config().vocab_size
    size = 4 * job.batches.width(index) * vocabulary
    say(
        f"note: the loss is computed from all logits at once, not in chunks: {obstacle}; those of "
        f"the largest batch, {rows} sequences of {length:,} tokens, take {size:,} bytes in float32"
    )
    return f"all at once: {obstacle}"
