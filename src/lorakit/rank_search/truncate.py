"""One run at a high rank, cut to every lower one: each cut is the best of its rank, trains on a
little, and is measured.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lorakit.adapter import Adapter
from lorakit.algebra.truncation import resize
from lorakit.data.encode import Example
from lorakit.errors import DataError, SpecError
from lorakit.evaluate.score import evaluate
from lorakit.inject.attach import attach, attached, detach
from lorakit.rank_search.config import Choosing
from lorakit.rank_search.evidence import HIGHER, Choice, Scored, by_row, choose
from lorakit.spec import Spec
from lorakit.text import plural
from lorakit.train.log import METRICS, Log
from lorakit.train.loop import Job, fit

LOOKING = 0.12  # of the run: what all measuring may cost, told by tokens
FORWARD = 0.45  # of a step: what measuring a token costs
SEEN = 0.2  # of what is measured: rows that were trained on
LEAST = 30  # held-out examples that are measured on at least, if there are so many
GENTLE = 0.5  # of the run's learning rate: where what was cut trains on


@dataclass
class Found:
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


def check(job: Job, spec: Spec, *, plain: bool = True) -> None:
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
def worn(model: nn.Module, adapter: Adapter, *, trainable: bool = False) -> Iterator[None]:
    """Put this adapter alone on the model while the block lasts; after it the model wears none."""
    if attached(model):
        detach(model)
    attach(model, adapter, trainable=trainable, any_base=True)
    model.eval()
    try:
        yield
    finally:
        detach(model)


def measured(job: Job, adapter: Adapter, examples: Sequence[Example], metric: str) -> Scored:
    """Return what an adapter scores on examples, by row."""
    with worn(job.model, adapter):
        scores = evaluate(
            job.model,
            examples,
            job.task,
            pad=job.pad,
            classes=job.classes,
            batch_size=job.settings.eval_batch_size,
        )
    return by_row(scores, examples, metric)


def deciding(metric: str, job: Job) -> str:
    """Return the metric that decides.

    Raises:
        SpecError: a metric of classes is asked where there are none, or one of two classes where
            there are more.
    """
    task = job.task
    if metric in HIGHER and task != "classify":
        raise SpecError(f"metric: {metric} is counted where rows have classes; the task is {task}.")
    if metric in HIGHER[1:] and job.classes != 2:
        raise SpecError(
            f"metric: {metric} decides between two classes; here are {job.classes}: take accuracy or loss."
        )
    return ("accuracy" if task == "classify" else "loss") if metric == "auto" else metric


def trained_on(job: Job, adapter: Adapter, name: str, *, steps: int, lr: float) -> Adapter:
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
    with worn(job.model, adapter, trainable=True):
        fit(
            replace(job, adapter=adapter, held_out=(), settings=settings, lr=lr, output=folder),
            lambda start: Log(folder / METRICS, start, steps, quiet=True),
        )
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    return adapter


def truncate(job: Job, asked: Choosing, say: Callable[[str], None] = lambda text: None) -> Found:
    """Train once at the highest rank, cut, let each cut train on a little, measure all, and take
    the smallest that is enough.

    Beside the cut of one rank for all modules there is one of the same number of parameters, with
    ranks by module; of the two the better on the held-out rows is given back.

    Args:
        job: with the adapter of the highest rank attached; what it writes goes to its output
            folder.
        asked: which ranks, which metric, how much each may train on.
        say: called with lines for people.

    Raises:
        SpecError: a metric that the task has not, or no rank below that of the adapter.
        DataError: nothing, or one row, is held out.
        TrainingError: of the run.
    """
    metric, full = deciding(asked.metric, job), job.adapter
    check(job, full.spec)
    lower = [r for r in asked.ranks if r < max((d.rank for d in full.deltas.values()), default=0)]
    if not lower:
        raise SpecError(
            f"No rank of {', '.join(map(str, asked.ranks))} is below that of the adapter."
        )
    begun = time.perf_counter()
    job.output.mkdir(parents=True, exist_ok=True)
    at = fit(job, lambda start: Log(job.output / METRICS, start, job.steps))
    one_run = time.perf_counter() - begun
    full.save(job.output)

    allowed = math.inf if asked.all_rows else LOOKING / FORWARD * at.tokens / (len(lower) + 2)
    held = share(job.held_out, allowed * (1 - SEEN))
    seen = share(job.examples, min(allowed, sum(len(e.ids) for e in held)) * SEEN, LEAST // 2)
    steps = round(asked.refine * job.steps / (len(lower) + 1))
    say(
        f"Rank {asked.rank} took {one_run:.1f} s. Now {', '.join(map(str, lower))}: cut"
        + (f", {plural(steps, 'step')} more each" if steps else "")
        + f", measured on {len(held):,} of "
        f"{plural(len(job.held_out), 'held-out sequence')}."
    )

    def cut(name: str, size: Mapping[str, int]) -> tuple[Adapter, float]:
        told = resize(full, rank=size.get("rank"), parameters=size.get("parameters"))
        small = (
            trained_on(job, told.adapter, name, steps=steps, lr=GENTLE * job.lr)
            if steps
            else told.adapter
        )
        return small, told.energy

    made: dict[int, tuple[Adapter, float]] = {r: cut(f"rank-{r}", {"rank": r}) for r in lower}
    made[max(asked.ranks)] = (full, 1.0)
    scored = {r: measured(job, adapter, held, metric) for r, (adapter, _) in made.items()}
    choice = choose(scored, metric, seed=job.settings.seed, of=len({e.row for e in job.held_out}))
    fit_of = {r: measured(job, adapter, seen, metric).metric for r, (adapter, _) in made.items()}
    small, facts = made[choice.rank][0], {}
    if choice.rank in lower:
        spread, _ = cut(
            "by-module",
            {"parameters": sum(p.numel() for d in small.deltas.values() for p in d.parameters())},
        )
        pair = {0: scored[choice.rank], 1: measured(job, spread, held, metric)}
        better = choose(pair, metric).best == 1
        facts["by_module"] = {
            "metric": pair[1].metric,
            "taken": better,
            "parameters": spread.parameters_count,
            "ranks": {name: delta.rank for name, delta in spread.deltas.items()},
        }
        small = spread if better else small
    seconds = time.perf_counter() - begun
    extra = {
        r: {
            "train": fit_of[r],
            "parameters": adapter.parameters_count,
            "energy": energy,
            "metrics": scored[r].metrics,
        }
        for r, (adapter, energy) in made.items()
    }
    facts |= {
        "extra": extra,
        "steps": at.step,
        "tokens": at.tokens,
        "refined_steps": steps,
        "rows_measured": len(held),
        "seconds": round(seconds, 3),
        "seconds_of_one_run": round(one_run, 3),
        "cost": round(seconds / one_run, 3),
    }
    return Found(choice, small, metric, facts)


def share(examples: Sequence[Example], tokens: float, least: int = LEAST) -> Sequence[Example]:
    """Return examples, evenly spread, that have about so many tokens together.

    >>> [e.row for e in share([Example(ids=[1] * 10, row=i) for i in range(8)], tokens=40, least=1)]
    [0, 2, 4, 6]
    """
    total = sum(len(e.ids) for e in examples)
    count = (
        len(examples)
        if tokens >= total
        else max(min(least, len(examples)), int(len(examples) * tokens / total))
    )
    return [examples[i * len(examples) // count] for i in range(count)]
