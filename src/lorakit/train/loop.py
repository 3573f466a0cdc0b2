"""THE loop: one optimizer step after another, on Accelerate, that checks itself and stops cleanly
when it must.
"""

import math
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from lorakit.adapter import Adapter
from lorakit.data.batches import Batches, collate, pack_examples
from lorakit.data.encode import Example
from lorakit.errors import TrainingError
from lorakit.evaluate.score import batch_loss, evaluate
from lorakit.models.checkpointing import checkpoint_blocks
from lorakit.models.packing import packed_attention
from lorakit.text import plural
from lorakit.train import checkpoints
from lorakit.train.budget import Budget
from lorakit.train.config import TrainSpec
from lorakit.train.log import Log
from lorakit.train.optim import gradient_norm, lr_factor, make_optimizer, set_lr
from lorakit.train.rehearsal import rehearse

LOOK = 256  # held-out sequences that are looked at during the run; before and after it, all are
RECENT = 10  # losses whose median tells whether a run has exploded


@dataclass
class Job:
    """All that the loop works on; what is in it has been checked. `dataclasses.replace` gives one
    with other settings.
    """

    model: Any
    adapter: Adapter
    task: str
    examples: Sequence[Example]
    held_out: Sequence[Example]
    pad: int
    classes: int
    settings: TrainSpec
    lr: float
    output: Path
    packed: bool = False

    @cached_property
    def batches(self) -> Batches:
        """The order of the batches."""
        s = self.settings
        return Batches(
            [len(e.ids) for e in self.examples],
            s.batch_size,
            s.seed,
            s.batch_tokens,
            packed=self.packed,
        )

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.settings.steps or max(
            1, math.ceil(self.settings.epochs * self.batches.per_epoch / self.settings.accumulate)
        )

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return what the loss is taken of."""
        device = next(self.model.parameters()).device
        return (
            pack_examples(examples, device) if self.packed else collate(examples, self.pad, device)
        )

    @cached_property
    def eval_every(self) -> int:
        """Steps between evaluations."""
        return self.settings.eval_every or max(1, math.ceil(self.steps / 10))

    @cached_property
    def eval_examples(self) -> Sequence[Example]:
        """The held-out sequences that evaluations during the run use: evenly spread, at most LOOK."""
        return self.held_out[:: max(1, math.ceil(len(self.held_out) / LOOK))]


@dataclass
class Progress:
    """How far a run is, and what it has seen; a checkpoint holds it."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_first: float = math.nan
    loss_last: float = math.nan
    recent: list[float] = field(default_factory=list)
    lowest: float = math.inf
    best_loss: float = math.inf
    best_step: int | None = None
    worse: int = 0
    stopped_early: bool = False


class Interrupted(TrainingError):
    """The user, or the system, asked the run to stop; it saved a checkpoint first."""

    exit_code = 130


class Signals:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the step; a second one acts as
    usual.
    """

    def __init__(self) -> None:
        self.asked, self.before = False, {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.before[number] = signal.signal(number, self._ask)
            except (
                ValueError
            ):  # not the main thread: whoever runs the loop there stops it in its own way
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.__exit__()


def fit(job: Job, log_for: Callable[[int], Log], state: dict[str, Any] | None = None) -> Progress:
    """Train until the last step, and leave the best (or last) weights in the adapter.

    Args:
        job: what to train on what.
        log_for: makes the Log, given the step that the run goes on from.
        state: of the checkpoint to go on from; the adapter holds its weights already.

    Raises:
        TrainingError: no gradient reached an adapted module at the first step, a dtype is not what
            was asked, or the loss is not finite or has exploded; what was good is kept.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
    """
    settings, adapter = job.settings, job.adapter
    # Accelerate keeps one state a process; a run leaves none behind, so that the next may have
    # another precision.
    shared = AcceleratorState._shared_state != {}
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        cpu=next(job.model.parameters()).device.type == "cpu",
    )
    if accelerator.num_processes > 1:
        raise TrainingError("This run was launched as several processes; train runs as one.")
    check_trainable(job.model, adapter)
    optimizer = accelerator.prepare(make_optimizer(adapter, job.lr, settings.weight_decay))
    budget = None
    if adapter.spec.delta == "adalora" and adapter.deltas:
        budget = budget_of(adapter, settings, job.steps)
    batches = job.batches
    at = Progress()
    if state:
        optimizer.load_state_dict(state["optimizer"])
        at = Progress(**state["progress"])
        if budget:
            budget.load_state_dict(state["budget"])
    log = log_for(at.step)
    if settings.checkpointing:
        checkpoint_blocks(job.model, settings.checkpointing)
    job.model.train()
    packs = packed_attention if job.packed else nullcontext
    with packs(job.model):
        rehearse(
            job,
            accelerator,
            batches,
            at.step * settings.accumulate,
            job.steps * settings.accumulate,
        )
    torch.manual_seed(settings.seed)
    if state:
        checkpoints.set_random_state(state["random"])
    try:
        with packs(job.model), Signals() as signals:
            while at.step < job.steps and not at.stopped_early:
                _step(job, accelerator, optimizer, batches, at, log, budget)
                last = at.step == job.steps or at.stopped_early
                every = settings.checkpoint_every or job.eval_every
                if last or signals.asked or at.step % every == 0 or at.best_step == at.step:
                    checkpoints.save(job.output, at.step, adapter, optimizer, asdict(at), budget)
                    checkpoints.prune(job.output, settings.keep, at.best_step)
                if signals.asked and not last:
                    raise Interrupted(
                        f"Interrupted after step {at.step} of {job.steps}; a checkpoint was saved.",
                        advice="The same command with --resume goes on from it.",
                    )
    finally:
        log.close()
        job.model.eval()
        if not shared:
            AcceleratorState._reset_state(reset_partial_state=True)
    if settings.final == "best" and at.best_step not in (None, at.step):
        restore(adapter, job.output / checkpoints.FOLDER / f"step-{at.best_step:06d}")
    if budget:
        budget.prune()
    return at


def budget_of(adapter: Adapter, settings: TrainSpec, steps: int) -> Budget:
    """Return the budget of ranks that these settings ask for."""
    return Budget(
        adapter,
        steps,
        rank=settings.target_rank,
        warmup=settings.budget_warmup,
        final=settings.budget_final,
        every=settings.budget_every,
        orthogonality=settings.orthogonality,
    )


def _step(
    job: Job,
    accelerator: Accelerator,
    optimizer: Any,
    batches: Batches,
    at: Progress,
    log: Log,
    budget: Budget | None,
) -> None:
    """Do one optimizer step, and what falls due after it."""
    settings, begun = job.settings, time.perf_counter()
    lr = job.lr * lr_factor(at.step, job.steps, settings.warmup, settings.schedule)
    set_lr(optimizer, lr)
    groups = [
        [job.examples[i] for i in batches[at.step * settings.accumulate + j]]
        for j in range(settings.accumulate)
    ]
    # Divided by what counts in the whole step: accumulating gives the gradient of one large batch.
    count = sum(e.trained for group in groups for e in group)
    total = 0.0
    for group in groups:
        with accelerator.autocast():
            loss = batch_loss(job.model, job.batch(group), job.task)[0] / count
        total += loss.item()
        if not math.isfinite(total):
            _stop(job, at, f"The loss is {total} at step {at.step + 1}.")
        accelerator.backward(loss)
    parameters = list(job.adapter.parameters())
    clipped = accelerator.clip_grad_norm_(parameters, settings.clip) if settings.clip else None
    norm = gradient_norm(parameters) if clipped is None else float(clipped)
    if at.step == 0:
        check_gradients(job.adapter)
    if (
        not math.isfinite(norm) and settings.mixed_precision != "fp16"
    ):  # fp16's scaler skips such a step and goes on
        _stop(job, at, f"The gradient's norm is {norm} at step {at.step + 1}.")
    if budget:
        if not settings.clip:
            accelerator.unscale_gradients(optimizer)
        budget.step(optimizer)
    else:
        optimizer.step()
    optimizer.zero_grad()
    at.step += 1
    at.tokens += sum(len(e.ids) for group in groups for e in group)
    at.seconds += time.perf_counter() - begun
    at.loss_first, at.loss_last = (total if at.step == 1 else at.loss_first), total
    _watch(job, at, total)
    line = {
        "step": at.step,
        "loss": total,
        "lr": lr,
        "tokens": at.tokens,
        "seconds": round(at.seconds, 4),
        "grad_norm": norm,
    }
    if job.held_out and (at.step % job.eval_every == 0 or at.step == job.steps):
        found = evaluate(
            job.model,
            job.eval_examples,
            job.task,
            pad=job.pad,
            batch_size=settings.eval_batch_size,
            classes=job.classes,
        ).metrics
        if not math.isfinite(found["loss"]):
            _stop(job, at, f"The held-out loss is {found['loss']} at step {at.step}.")
        line |= {f"eval_{key}": value for key, value in found.items()}
        if budget and not budget.settled:
            pass  # weights that have more ranks than the budget are none to keep
        elif found["loss"] < at.best_loss:
            at.best_loss, at.best_step, at.worse = found["loss"], at.step, 0
        else:
            at.worse += 1
            at.stopped_early = settings.patience is not None and at.worse >= settings.patience
    log.step(line)


def _watch(job: Job, at: Progress, loss: float) -> None:
    """Stop a run whose loss has left all that it had reached: its median is far above the lowest
    median so far.
    """
    at.recent = [*at.recent, loss][-RECENT:]
    if len(at.recent) == RECENT:
        median = statistics.median(at.recent)
        at.lowest = min(at.lowest, median)
        if median > 4 * at.lowest + 2:
            _stop(
                job,
                at,
                f"The loss has exploded: its median over {RECENT} steps is {median:.4g} at step {at.step}, "
                f"it was {at.lowest:.4g}.",
            )


def _stop(job: Job, at: Progress, what: str) -> None:
    kept = sorted(p.name for p in (job.output / checkpoints.FOLDER).glob("step-*"))
    best = f"step-{at.best_step:06d}" if at.best_step is not None else None
    good = best or (kept[-1] if kept else None)
    where = (
        f"The last good checkpoint is {job.output / checkpoints.FOLDER / good}: an adapter folder that can be used as it is."
        if good
        else "No checkpoint had been saved yet."
    )
    advice = (
        f"{where} Try a lower --lr (it was {job.lr:g}), --clip 1, or look at the rows with preview."
    )
    raise TrainingError(f"{what} The run was stopped.", advice=advice)


def check_trainable(model: nn.Module, adapter: Adapter) -> None:
    """Refuse to train nothing, or something else than what was asked."""
    asked, training = getattr(torch, adapter.spec.dtype), list(adapter.parameters())
    if not any(p.requires_grad for p in training):
        raise TrainingError("Nothing would train: no parameter of the adapter requires a gradient.")
    faults = [
        f"{name}.{key}   is {p.dtype}, asked was {asked}"
        for name, delta in adapter.deltas.items()
        for key, p in delta.named_parameters()
        if p.dtype != asked
    ]
    known = {id(p) for p in training}
    faults += [
        f"{name}   of the base requires a gradient"
        for name, p in model.named_parameters()
        if p.requires_grad and id(p) not in known
    ]
    if faults:
        raise TrainingError(
            f"{plural(len(faults), 'parameter')} not as asked for.", faults, "Nothing was trained."
        )


def check_gradients(adapter: Adapter) -> None:
    """Stop a run in which some adapted module would never learn: what starts at zero (such as B)
    got no gradient.
    """
    first = {
        name: delta.get_parameter(delta.zero_parameter)
        for name, delta in adapter.deltas.items()
        if delta.zero_parameter
    }
    grads = {name: parameter.grad for name, parameter in first.items() if parameter.requires_grad}
    faults = [
        f"{name}   {'no gradient arrives' if grad is None else 'its gradient is zero throughout'}"
        for name, grad in grads.items()
        if grad is None or not grad.any()
    ]
    faults += [
        f"{name}   no gradient arrives"
        for name, p in adapter.full_parameters.items()
        if p.requires_grad and p.grad is None
    ]
    if faults:
        total = len(adapter.deltas) + len(adapter.full_parameters)
        raise TrainingError(
            f"At the first step {len(faults)} of {total} trained modules got no gradient.",
            faults,
            "The loss does not depend on them: leave them out with --exclude.",
        )


def restore(adapter: Adapter, folder: Path) -> None:
    """Copy the tensors of a checkpoint into an adapter that is attached."""
    kept = Adapter.load(folder)
    with torch.no_grad():
        for name, delta in adapter.deltas.items():  # with what is frozen in it
            delta.load_state_dict(kept.deltas[name].state_dict())
        for name, parameter in adapter.full_parameters.items():
            parameter.copy_(kept.full_parameters[name])
