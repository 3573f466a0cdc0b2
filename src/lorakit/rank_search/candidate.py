"""One adapter of a search: checked, attached alone, scored, trained further."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lorakit.adapter import Adapter
from lorakit.data.encode import Example
from lorakit.errors import DataError, SpecError
from lorakit.evaluate.score import evaluate
from lorakit.inject.attach import attach, attached, detach
from lorakit.rank_search.evidence import (
    HIGHER_IS_BETTER,
    Choice,
    RowScores,
    scores_by_row,
)
from lorakit.spec import Spec
from lorakit.train.job import Job
from lorakit.train.log import METRICS, Log
from lorakit.train.loop import fit


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        choice: the curve and the rank.
        adapter: the small one.
        metric: what decided.
        facts: what else is told, as JSON holds it.
    """

    choice: Choice
    adapter: Adapter
    metric: str
    facts: dict[str, Any]


def check_searchable(job: Job, spec: Spec, *, plain: bool = True) -> None:
    """Refuse what cannot be cut or grown, or not be measured.

    Args:
        job: the run.
        spec: of its adapter.
        plain: whether it will be cut or grown.

    Raises:
        SpecError: an adapter that is no plain low rank from its start on.
        DataError: nothing is held out.
    """
    if plain and (spec.delta != "lora" or spec.init in ("pissa", "pissa-fast", "olora", "lora-ga")):
        what = spec.delta if spec.delta != "lora" else f"init {spec.init}"
        raise SpecError(
            f"Plain LoRA on an unmoved base is cut by its singular values; {what} is not.",
            advice="Leave --delta and --init as they are: the rank carries over. Nothing was started.",
        )
    if not job.held_out:
        raise DataError(
            "No rows are held out, so no rank can be measured.",
            advice="Give --eval-data, or a larger --eval-fraction. Nothing was started.",
        )


@contextmanager
def attached_alone(
    model: nn.Module, adapter: Adapter, *, trainable: bool = False
) -> Iterator[None]:
    """Put this adapter alone on the model while the block lasts; after it the model wears none."""
    if attached(model):
        detach(model)
    attach(model, adapter, trainable=trainable, any_base=True)
    model.eval()
    try:
        yield
    finally:
        detach(model)


def score_adapter(
    job: Job, adapter: Adapter, examples: Sequence[Example], metric: str
) -> RowScores:
    """Return what an adapter scores on examples, by row."""
    with attached_alone(job.model, adapter):
        scores = evaluate(
            job.model,
            examples,
            job.task,
            pad=job.pad,
            classes=job.classes,
            batch_size=job.settings.eval_batch_size,
        )
    return scores_by_row(scores, examples, metric)


def deciding_metric(metric: str, job: Job) -> str:
    """Return the metric that decides.

    Raises:
        SpecError: a metric of classes is asked where there are none, or one of two classes where
            there are more.
    """
    task = job.task
    if metric in HIGHER_IS_BETTER and task != "classify":
        raise SpecError(f"metric: {metric} is counted where rows have classes; the task is {task}.")
    if metric in HIGHER_IS_BETTER[1:] and job.classes != 2:
        raise SpecError(
            f"metric: {metric} decides between two classes; here are {job.classes}: take accuracy or loss."
        )
    return ("accuracy" if task == "classify" else "loss") if metric == "auto" else metric


def continue_training(job: Job, adapter: Adapter, name: str, *, steps: int, lr: float) -> Adapter:
    """Train an adapter on for a few steps, with a learning rate that falls to nothing; returns it.

    Args:
        job: whose model, data and settings are used; nothing is measured on the way.
        adapter: is changed in place.
        name: of the folder beneath the job's for its log and checkpoint.
        steps: optimizer steps.
        lr: the learning rate that it begins with.
    """
    folder = job.output / name
    folder.mkdir(parents=True, exist_ok=True)
    settings = replace(
        job.settings,
        steps=steps,
        schedule="linear",
        warmup=0.0,
        final="last",
        checkpoint_every=steps,
        seed=job.settings.seed + 1,
    )
    with attached_alone(job.model, adapter, trainable=True):
        fit(
            replace(job, adapter=adapter, held_out=(), settings=settings, lr=lr, output=folder),
            lambda start: Log(folder / METRICS, start, steps, quiet=True),
        )
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    return adapter
