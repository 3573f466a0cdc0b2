"""The training loop: optimizer steps, with checks, checkpoints and a clean stop."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState

from lorakit.data.encode import Example
from lorakit.errors import TrainingError
from lorakit.evaluate.regularisation import training_loss
from lorakit.models.checkpointing import checkpoint_blocks
from lorakit.train import checkpoints
from lorakit.train.budget import Budget, make_budget
from lorakit.train.checkpoints import CheckpointState
from lorakit.train.checks import GradientCheck, check_trainable, count_steps_to_see
from lorakit.train.job import Job
from lorakit.train.log import Log
from lorakit.train.optim import gradient_norm, lr_factor, make_optimizer, set_lr
from lorakit.train.progress import Progress
from lorakit.train.rehearsal import rehearse
from lorakit.train.signals import Interrupted, Signals

LEAST_SCALE = 2**-10  # of the loss in fp16; it is halved after each overflow


@dataclass(frozen=True)
class Session:
    """The objects that one call of `fit` works with.

    Attributes:
        begun: the moment at which the run would have begun without interruptions.
    """

    job: Job
    accelerator: Accelerator
    optimizer: AcceleratedOptimizer
    budget: Budget | None
    progress: Progress
    log: Log
    begun: float
    gradients: GradientCheck


def fit(job: Job, log_for: Callable[[int], Log], state: CheckpointState | None = None) -> Progress:
    """Train until the last step, and leave the best (or last) weights in the adapter.

    Args:
        job: model, adapter, data and settings.
        log_for: makes the Log, given the step that the run continues from.
        state: state of the checkpoint to continue from; the adapter has its weights already.

    Returns:
        The progress at the end.

    Raises:
        TrainingError: no gradient reached an adapted module at the first step (or in several, if
            the model may skip layers), a dtype differs from
            the spec, or the loss is not finite or has exploded; checkpoints are kept.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP, after a checkpoint.
    """
    with _accelerator_for(job) as accelerator:
        session = _open_session(job, accelerator, log_for, state)
        try:
            with job.attention():
                _rehearse(session)
                torch.manual_seed(job.settings.seed)
                if state:
                    checkpoints.set_random_state(state["random"])
                _run_steps(session)
        finally:
            session.log.close()
            job.model.eval()
    _choose_weights(session)
    return session.progress


def check_first_step(job: Job) -> tuple[int, int]:
    """Run the checks of a run up to its first step, which is not taken.

    The longest batch runs forward and backward; the model is afterwards as before.

    Returns:
        (sequences, tokens of the longest one) of that batch.

    Raises:
        TrainingError: the batch does not fit into memory, no gradient reaches an adapted module, or
            a dtype differs from the spec.
    """
    settings = job.settings
    check_trainable(job.model, job.adapter)
    with _accelerator_for(job) as accelerator, job.attention():
        if settings.checkpointing:
            checkpoint_blocks(job.model, settings.checkpointing)
        job.model.train()
        try:
            is_whole = count_steps_to_see(job.model) == 1
            check = GradientCheck(1) if is_whole else None
            return rehearse(job, accelerator, 0, job.steps * settings.accumulate, check)
        finally:
            job.model.eval()


@contextmanager
def _accelerator_for(job: Job) -> Iterator[Accelerator]:
    """Yield an Accelerator, and reset its global state at the end, so that runs do not share it."""
    is_shared = AcceleratorState._shared_state != {}
    accelerator = Accelerator(mixed_precision=job.mixed_precision, cpu=job.device.type == "cpu")
    if accelerator.num_processes > 1:
        raise TrainingError("This run was launched as several processes; train runs as one.")
    try:
        yield accelerator
    finally:
        if not is_shared:
            AcceleratorState._reset_state(reset_partial_state=True)


def _open_session(
    job: Job,
    accelerator: Accelerator,
    log_for: Callable[[int], Log],
    state: CheckpointState | None,
) -> Session:
    """Make the optimizer, budget and log, and set the model to training."""
    settings = job.settings
    check_trainable(job.model, job.adapter)
    optimizer = accelerator.prepare(
        make_optimizer(
            job.adapter, job.lr, settings.weight_decay, settings.optimizer, settings.lr_ratio
        )
    )
    budget = make_budget(job.adapter, settings, job.steps)
    progress = Progress()
    if state:
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**state["progress"])
        if budget and "budget" in state:
            budget.load_state_dict(state["budget"])
        if accelerator.scaler and "scaler" in state:
            accelerator.scaler.load_state_dict(state["scaler"])
    log = log_for(progress.step)
    if settings.checkpointing:
        checkpoint_blocks(job.model, settings.checkpointing)
    job.model.train()
    # A checkpoint of an earlier version has no wall_seconds.
    begun = time.perf_counter() - max(progress.wall_seconds, progress.seconds)
    # A run that is resumed was checked at its start.
    check = GradientCheck(0 if progress.step else count_steps_to_see(job.model))
    return Session(job, accelerator, optimizer, budget, progress, log, begun, check)


def _rehearse(session: Session) -> None:
    """Run the longest batch that is left, to see whether it fits into memory."""
    job = session.job
    passes = job.settings.accumulate
    rehearse(job, session.accelerator, session.progress.step * passes, job.steps * passes)
    job.method.take_metrics()  # They are of no step.


def _run_steps(session: Session) -> None:
    """Train until the last step, and save checkpoints where they are due.

    Raises:
        Interrupted: Ctrl-C, SIGTERM or SIGHUP, after a checkpoint.
    """
    job, progress = session.job, session.progress
    with Signals() as signals:
        while progress.step < job.steps and not progress.stopped_early:
            train_step(session)
            is_last = progress.step == job.steps or progress.stopped_early
            if is_last or signals.stop_requested or _checkpoint_is_due(job, progress):
                _save_checkpoint(session)
            if signals.stop_requested and not is_last:
                raise Interrupted(
                    f"Interrupted after step {progress.step} of {job.steps}; "
                    "a checkpoint was saved.",
                    advice="The same command with --resume goes on from it.",
                )


def _checkpoint_is_due(job: Job, progress: Progress) -> bool:
    every = job.settings.checkpoint_every or job.eval_every
    return progress.step % every == 0 or progress.best_step == progress.step


def _save_checkpoint(session: Session) -> None:
    job, progress = session.job, session.progress
    checkpoints.save(
        job.output,
        job.adapter,
        session.optimizer,
        progress,
        session.budget,
        job.chat_template,
        session.accelerator.scaler,
    )
    checkpoints.prune(job.output, job.settings.keep, progress.best_step)


def _choose_weights(session: Session) -> None:
    """Load the best weights into the adapter if they are not the last, and prune its ranks."""
    job, best_step = session.job, session.progress.best_step
    is_last = best_step == session.progress.step
    if job.settings.final == "best" and best_step is not None and not is_last:
        checkpoints.restore(job.adapter, checkpoints.checkpoint_folder(job.output, best_step))
    if session.budget:
        session.budget.prune()


def train_step(session: Session) -> None:
    """Take one optimizer step, evaluate where it is due, and log both.

    Raises:
        TrainingError: a loss or gradient that is not finite, a loss that has exploded, or at the
            first step a module without a gradient.
    """
    job, progress = session.job, session.progress
    begun = time.perf_counter()
    lr = _set_learning_rate(session)
    groups = _next_groups(job, progress.step)
    loss = _accumulate_gradients(session, groups)
    norm = _clip_gradients(session)
    _update_parameters(session)
    tokens = sum(example.size for example in chain.from_iterable(groups))
    progress.count_step(loss, tokens, time.perf_counter() - begun)
    explosion = progress.explosion()
    if explosion:
        raise _stop(session, explosion)
    line = {
        "step": progress.step,
        "loss": loss,
        "lr": lr,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 4),
        "grad_norm": norm,
        **job.method.take_metrics(),
    }
    is_evaluation_due = progress.step % job.eval_every == 0 or progress.step == job.steps
    if job.held_out and is_evaluation_due:
        line |= _evaluate(session)
    session.log.step(line)
    progress.wall_seconds = time.perf_counter() - session.begun


def _set_learning_rate(session: Session) -> float:
    job, settings = session.job, session.job.settings
    factor = lr_factor(
        session.progress.step, job.steps, settings.warmup, settings.schedule, settings.cycles
    )
    lr = job.lr * factor
    set_lr(session.optimizer, lr)
    return lr


def _next_groups(job: Job, step: int) -> list[list[Example]]:
    """Return the examples of each forward pass of a step."""
    passes = job.settings.accumulate
    return [job.batch(step * passes + i) for i in range(passes)]


def _accumulate_gradients(session: Session, groups: Sequence[Sequence[Example]]) -> float:
    """Run forward and backward passes, and return the mean loss over all that is trained.

    Each loss is divided by the count of the whole step, so that accumulating gives the gradient of
    one large batch.
    """
    job, accelerator = session.job, session.accelerator
    count = sum(example.trained for example in chain.from_iterable(groups))
    total = 0.0
    for group in chain.from_iterable(map(job.passes, groups)):
        with accelerator.autocast():
            batch = job.collate(group)
            loss = training_loss(job.model, batch, job.method, job.regularisation) / count
        total += loss.item()
        if not math.isfinite(total):
            step = session.progress.step + 1
            raise _stop(session, f"The loss is {total} at step {step}.")
        accelerator.backward(loss)
    return total


def _clip_gradients(session: Session) -> float:
    """Clip the gradients where the settings say so, check them, and return their norm before it."""
    job, accelerator = session.job, session.accelerator
    parameters = list(job.adapter.parameters())
    clipped = None
    if job.settings.clip:
        clipped = accelerator.clip_grad_norm_(parameters, job.settings.clip)
    norm = gradient_norm(parameters) if clipped is None else float(clipped)
    if math.isfinite(norm):
        session.gradients.see(job.adapter)
    elif job.mixed_precision != "fp16":
        # In fp16 the step is skipped, and the next one has a smaller loss scale.
        step = session.progress.step + 1
        raise _stop(session, f"The gradient's norm is {norm} at step {step}.")
    return norm


def _update_parameters(session: Session) -> None:
    optimizer, budget = session.optimizer, session.budget
    if budget:
        if not session.job.settings.clip:  # Clipping has unscaled them already.
            session.accelerator.unscale_gradients(optimizer)
        budget.step(optimizer)
    else:
        optimizer.step()
    optimizer.zero_grad()
    scaler = session.accelerator.scaler
    if scaler and scaler.get_scale() < LEAST_SCALE:
        step = session.progress.step + 1
        raise _stop(session, f"The gradients overflow float16 with any loss scale at step {step}.")


def _evaluate(session: Session) -> dict[str, float]:
    """Return the metrics on held-out sequences, and count them as an evaluation."""
    job, progress = session.job, session.progress
    with session.log.evaluating(len(job.eval_examples)) as advance:
        metrics = job.evaluate(job.eval_examples, advance).metrics
    loss = metrics["loss"]
    if not math.isfinite(loss):
        raise _stop(session, f"The held-out loss is {loss} at step {progress.step}.")
    # Weights with more ranks than the budget allows at the end are not kept.
    if session.budget is None or session.budget.is_settled:
        progress.count_evaluation(loss, job.settings.patience)
    return {f"eval_{name}": value for name, value in metrics.items()}


def _stop(session: Session, reason: str) -> TrainingError:
    """Return the error that ends a run; it names the last good checkpoint."""
    job, best_step = session.job, session.progress.best_step
    folders = checkpoints.all_checkpoints(job.output)
    if best_step is not None:
        folders = [checkpoints.checkpoint_folder(job.output, best_step)]
    where = "No checkpoint had been saved yet."
    if folders:
        where = (
            f"The last good checkpoint is {folders[-1]}: "
            "an adapter folder that can be used as it is."
        )
    advice = f"Try a lower --lr (it was {job.lr:g}), --clip 1, or look at the rows with preview."
    if job.mixed_precision == "fp16":
        advice += " Float16 ends at 65,504: --base-dtype float32 has no such limit."
    return TrainingError(f"{reason} The run was stopped.", advice=f"{where} {advice}")
