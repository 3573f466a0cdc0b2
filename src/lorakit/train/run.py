"""A whole run: prepare, evaluate, train, evaluate again, write the adapter and the report."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lorakit.data.templates import TEMPLATE_FILE
from lorakit.files import copy_file, write_json, write_text
from lorakit.spec import Spec
from lorakit.text import lasting_stderr, plural
from lorakit.train import checkpoints
from lorakit.train.card import model_card
from lorakit.train.checkpoints import CheckpointState
from lorakit.train.config import LENGTH, TrainSpec
from lorakit.train.job import Job
from lorakit.train.log import METRICS, Log, Say, progress_bar, read_metrics
from lorakit.train.loop import fit
from lorakit.train.output import (
    CARD,
    REPORT,
    RUN,
    check_content,
    check_output,
    clear_output,
    hold_output,
    load_state,
    read_earlier_run,
)
from lorakit.train.prepare import PreparedRun, prepare_run
from lorakit.train.progress import Progress
from lorakit.train.report import Metrics, RunReport, RunStart, peak_memory
from lorakit.train.spikes import find_spikes, has_climbed
from lorakit.train.trackers import Trackers

LOSS_PARTS = 10  # the first and the last tenth of the steps have a mean loss in the report


def train_adapter(settings: TrainSpec, spec: Spec, say: Say = lambda message: None) -> RunReport:
    """Train an adapter and write everything to `settings.output`.

    Args:
        settings: settings of the run.
        spec: spec of the adapter; a new head of the model is trained in full beside it.
        say: called with each message for the user.

    Returns:
        The report, as report.json has it.

    Raises:
        LorakitError: a request that cannot be met, before the first step; TrainingError while
            running.
    """
    output = Path(settings.output)
    check_output(output, settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    prepared = prepare_run(settings, spec, say)
    with lasting_stderr(), hold_output(output):
        check_content(output, settings)  # Another run may have begun meanwhile.
        return _run(prepared, say)


def _run(prepared: PreparedRun, say: Say) -> RunReport:
    """Train a prepared run, from its start or its newest checkpoint, and write the results."""
    job, settings, state = prepared.job, prepared.job.settings, None
    if settings.resume:
        state = load_state(job.output, settings, prepared.facts, job.steps)
        start = _resume(prepared, state, say)
    else:
        start = _begin(prepared)
    say(
        f"{job.steps} steps of {settings.batch_size * settings.accumulate} sequences, "
        f"peak learning rate {job.lr:g}, on {job.device}"
    )
    progress = fit(job, lambda step: _open_log(job, start, step), state)
    fitted = time.perf_counter()
    after = _measure(job, "measuring after")
    progress.wall_seconds += time.perf_counter() - fitted
    report = _make_report(start, progress, after, job.output)
    _write_results(job, report)
    return report


def _open_log(job: Job, start: RunStart, step: int) -> Log:
    """Open the log of a run that continues from a step, and its trackers."""
    config = {**start["settings"], **start["spec"], "lr": start["lr"]}
    trackers = Trackers(job.settings.log_to, job.output, config, step)
    return Log(job.output / METRICS, step, job.steps, trackers=trackers)


def _resume(prepared: PreparedRun, state: CheckpointState, say: Say) -> RunStart:
    """Put the weights of the newest checkpoint into the adapter."""
    job = prepared.job
    checkpoints.restore(job.adapter, checkpoints.newest(job.output))
    earlier = read_earlier_run(job.output)
    say(f"Resuming after step {state['step']} of {job.steps}.")
    if state["progress"]["stopped_early"]:
        say("note: it had stopped early, as its --patience says: it takes no more steps")
    _change_length(job, earlier, say)
    return {**prepared.facts, "before": earlier["before"]}


def _change_length(job: Job, earlier: dict[str, Any], say: Say) -> None:
    """Say it and write it to run.json if a resumed run has more or fewer steps than before."""
    length = {name: earlier["settings"][name] for name in LENGTH}
    steps = replace(job, settings=replace(job.settings, **length)).steps
    if steps == job.steps:
        return
    say(
        f"note: the run was to take {plural(steps, 'step')}, and now takes {job.steps:,}: the "
        f"{job.settings.schedule} schedule is computed anew over all of them"
    )
    changed = {name: getattr(job.settings, name) for name in LENGTH}
    write_json(job.output / RUN, {**earlier, "settings": {**earlier["settings"], **changed}})


def _begin(prepared: PreparedRun) -> RunStart:
    """Evaluate the model before it is trained, and write run.json.

    The new adapter inherits the tokenizer and the chat template of the one that it goes on from.
    """
    job, output = prepared.job, prepared.job.output
    start: RunStart = {**prepared.facts, "before": _measure(job, "measuring before")}
    if job.settings.overwrite:
        clear_output(output)
    write_json(output / RUN, start)
    origin = start["started_from"]
    if origin is not None:
        for name in origin["files"]:
            copy_file(Path(origin["path"]) / name, output / name)
    return start


def _measure(job: Job, title: str) -> Metrics | None:
    """Return the metrics on all held-out sequences; None where there are none."""
    if not job.held_out:
        return None
    with progress_bar(title, len(job.held_out)) as advance:
        return job.evaluate(job.held_out, advance).metrics


def _make_report(
    start: RunStart, progress: Progress, after: Metrics | None, output: Path
) -> RunReport:
    losses = [line["loss"] for line in read_metrics(output / METRICS)]
    count = math.ceil(len(losses) / LOSS_PARTS)
    return {
        **start,
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "tokens_per_second": round(progress.tokens / max(progress.seconds, 1e-9), 1),
        "wall_seconds": round(progress.wall_seconds, 3),
        "peak_memory_bytes": peak_memory(),
        "loss_first": progress.loss_first,
        "loss_last": progress.loss_last,
        "loss_steps": count,
        "loss_of_first_steps": _mean(losses[:count]),
        "loss_of_last_steps": _mean(losses[-count:]),
        "after": after,
        "best_step": progress.best_step,
        "stopped_early": progress.stopped_early,
        "output": str(output),
        "loss_spikes": find_spikes(losses),
        "loss_climbed": has_climbed(losses),
    }


def _mean(losses: Sequence[float | None]) -> float | None:
    """Return the mean of the losses; None where one is no number, as JSON has it."""
    numbers = [loss for loss in losses if loss is not None]
    return statistics.fmean(numbers) if numbers and len(numbers) == len(losses) else None


def _write_results(job: Job, report: RunReport) -> None:
    """Write the adapter, report.json and the model card."""
    job.adapter.provenance |= {
        "data_hash": report["data_hash"],
        "seed": report["seed"],
        "versions": report["versions"],
        "before": report["before"],
        "after": report["after"],
        "steps": report["steps"],
    }
    job.adapter.save(job.output)
    if job.chat_template is not None:
        write_text(job.output / TEMPLATE_FILE, job.chat_template)
    write_json(job.output / REPORT, report)
    write_text(job.output / CARD, model_card(report, read_metrics(job.output / METRICS)))
