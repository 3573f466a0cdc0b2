"""A dry run: everything up to the first step of a run, and nothing is written."""

import time
from pathlib import Path

import torch

from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.log import Say
from lorakit.train.loop import check_first_step
from lorakit.train.output import check_output, load_state
from lorakit.train.prepare import PreparedRun, prepare_run
from lorakit.train.report import RunFacts


class DryRun(RunFacts):
    """The facts of a run that was prepared and not started."""

    steps: int
    first_step: int
    eval_every: int
    rows_evaluated: int
    longest_batch: tuple[int, int]
    longest_batch_seconds: float
    device: str
    output: str


def try_run(settings: TrainSpec, spec: Spec, say: Say = lambda message: None) -> DryRun:
    """Read the data, plan, load the model, attach the adapter and run the longest batch.

    Args:
        settings: settings of the run.
        spec: spec of the adapter.
        say: called with each message for the user.

    Returns:
        The facts of the run; `first_step` is the step of the checkpoint that it would go on from,
        and `longest_batch` the sequences of that batch and the tokens of its longest one.

    Raises:
        LorakitError: a request that cannot be met.
    """
    output = Path(settings.output)
    check_output(output, settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    prepared = prepare_run(settings, spec, say)
    first_step = _find_first_step(prepared)
    job, begun = prepared.job, time.perf_counter()
    longest = check_first_step(job)
    seconds = time.perf_counter() - begun
    return {
        **prepared.facts,
        "steps": job.steps,
        "first_step": first_step,
        "eval_every": job.eval_every,
        "rows_evaluated": len(job.eval_examples),
        "longest_batch": longest,
        "longest_batch_seconds": round(seconds, 3),
        "device": str(job.device),
        "output": str(output),
    }


def _find_first_step(prepared: PreparedRun) -> int:
    """Return the step of the newest checkpoint of a run that is resumed, else 0."""
    job = prepared.job
    if not job.settings.resume:
        return 0
    return load_state(job.output, job.settings, prepared.facts, job.steps)["step"]
