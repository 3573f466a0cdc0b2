"""A whole run: check everything, measure before, train, measure after, write the adapter and its
report.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lorakit.evaluate.score import evaluate
from lorakit.files import write_json
from lorakit.spec import Spec
from lorakit.train import card, checkpoints
from lorakit.train.config import TrainSpec
from lorakit.train.log import METRICS, Log, progress_bar, read_metrics
from lorakit.train.loop import Job, fit, restore
from lorakit.train.output import (
    CARD,
    REPORT,
    RUN,
    check_output,
    clear_output,
    earlier_state,
)
from lorakit.train.prepare import prepare_run
from lorakit.train.report import peak_memory
from lorakit.train.spikes import find_spikes, has_climbed


def train_adapter(
    settings: TrainSpec, spec: Spec, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Train an adapter and write everything to `settings.output`.

    Args:
        settings: of the run.
        spec: of the adapter; a new head of the model is trained whole beside it.
        say: called with each line that a person would want to read.

    Returns:
        The report, as report.json holds it.

    Raises:
        LorakitError: anything that cannot be done as asked, before a step is taken; TrainingError
            while running.
    """
    output = Path(settings.output)
    check_output(output, settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    ready = prepare_run(settings, spec, say)
    job, facts = ready.job, ready.facts
    state = earlier_state(output, settings, facts) if settings.resume else None
    score = {"pad": job.pad, "batch_size": settings.eval_batch_size, "classes": job.classes}
    if state:
        restore(job.adapter, checkpoints.newest(output))
        facts["before"] = json.loads((output / RUN).read_text())["before"]
        say(f"Resuming after step {state['step']} of {job.steps}.")
    else:
        facts["before"] = _measured(job, "measuring before", score)
        if settings.overwrite:
            clear_output(output)
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / RUN, facts)
    say(
        f"{job.steps} steps of {settings.batch_size * settings.accumulate} sequences, peak learning rate {job.lr:g}, "
        f"on {next(job.model.parameters()).device}"
    )
    begun = time.perf_counter()
    at = fit(job, lambda start: Log(output / METRICS, start, job.steps), state)
    job.model.eval()
    after = _measured(job, "measuring after", score)
    losses = [line["loss"] for line in read_metrics(output / METRICS)]
    report = {
        **facts,
        "steps": at.step,
        "tokens": at.tokens,
        "seconds": round(at.seconds, 3),
        "tokens_per_second": round(at.tokens / max(at.seconds, 1e-9), 1),
        "wall_seconds": round(time.perf_counter() - begun, 3),
        "peak_memory_bytes": peak_memory(),
        "loss_first": at.loss_first,
        "loss_last": at.loss_last,
        "after": after,
        "best_step": at.best_step,
        "stopped_early": at.stopped_early,
        "output": str(output),
        "loss_spikes": find_spikes(losses),
        "loss_climbed": has_climbed(losses),
    }
    job.adapter.provenance |= {
        key: report[key] for key in ("data_hash", "seed", "versions", "before", "after", "steps")
    }
    job.adapter.save(output)
    write_json(output / REPORT, report)
    (output / CARD).write_text(card.text(report))
    return report


def _measured(job: Job, title: str, score: dict[str, Any]) -> dict[str, Any] | None:
    if not job.held_out:
        return None
    with progress_bar(title, len(job.held_out)) as advance:
        return evaluate(job.model, job.held_out, job.task, progress=advance, **score).metrics
