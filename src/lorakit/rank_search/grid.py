"""One run for each rank: the dear way, that asks nothing of one rank's run about another."""

import time
from collections.abc import Callable
from dataclasses import replace

from lorakit.adapter import Adapter
from lorakit.inject.attach import attach, attached, detach
from lorakit.rank_search.candidate import (
    SearchResult,
    check_searchable,
    deciding_metric,
    score_adapter,
)
from lorakit.rank_search.config import RankSearchSpec
from lorakit.rank_search.evidence import RowScores, choose_rank
from lorakit.train.job import Job
from lorakit.train.log import METRICS, Log
from lorakit.train.loop import fit


def search_grid(
    job: Job, asked: RankSearchSpec, say: Callable[[str], None] = lambda text: None
) -> SearchResult:
    """Train every rank by itself, from the same base, seed and order; the smallest within one
    standard error of the best is it.

    Any kind of adapter can be tried so. Each run takes all steps, and is measured on all held-out
    rows once it is through.

    Args:
        job: with an adapter of the smallest rank attached; what it writes goes to its output
            folder.
        asked: the ranks, and what decides.
        say: called with a line a rank.

    Raises:
        SpecError: a metric that the task has not.
        DataError: nothing, or one row, is held out.
        TrainingError: of a run.
    """
    metric, first = deciding_metric(asked.metric, job), job.adapter
    check_searchable(job, first.spec, plain=False)
    begun, made = time.perf_counter(), dict[int, Adapter]()
    scored: dict[int, RowScores] = {}
    for rank in asked.ranks:
        adapter = first
        if made:
            if attached(job.model):
                detach(job.model)
            adapter = attach(job.model, replace(first.spec, rank=rank), seed=job.settings.seed)
            adapter.provenance |= first.provenance
        folder = job.output / f"rank-{rank}"
        folder.mkdir(parents=True, exist_ok=True)
        settings = replace(job.settings, final="last", checkpoint_every=job.steps)
        fit(
            replace(job, adapter=adapter, held_out=(), settings=settings, output=folder),
            lambda start, to=folder: Log(to / METRICS, start, job.steps),
        )
        made[rank], scored[rank] = adapter, score_adapter(job, adapter, job.held_out, metric)
        say(f"rank {rank}: {metric} {scored[rank].metric:.4f}")
    choice = choose_rank(scored, metric, seed=job.settings.seed)
    extra = {
        r: {"parameters": adapter.parameters_count, "metrics": scored[r].metrics}
        for r, adapter in made.items()
    }
    facts = {
        "extra": extra,
        "steps": job.steps * len(made),
        "seconds": round(time.perf_counter() - begun, 3),
    }
    return SearchResult(choice, made[choice.rank], metric, facts)
