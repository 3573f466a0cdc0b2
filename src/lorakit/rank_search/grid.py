"""Grid search: one run for each rank, the most expensive way and the one with no assumptions."""

import time
from dataclasses import replace

from lorakit.rank_search.candidate import (
    Candidate,
    SearchFacts,
    SearchResult,
    attach_rank,
    check_searchable,
    choose_candidate,
    deciding_metric,
    try_rank,
)
from lorakit.rank_search.config import RankSearchSpec
from lorakit.train.job import Job
from lorakit.train.log import Say


def search_grid(job: Job, search: RankSearchSpec, say: Say = lambda message: None) -> SearchResult:
    """Train every rank by itself, and choose the smallest within one standard error of the best.

    All runs have the same base, seed and order of batches; each takes all steps and is scored on
    all held-out rows at its end. Adapters of any kind can be searched so.

    Args:
        job: a job with an adapter of the smallest rank attached; each run writes to a folder inside
            its output.
        search: the ranks and the metric.
        say: called with a message for each rank.

    Raises:
        SpecError: a metric that the task does not have.
        DataError: fewer than two rows are held out.
        TrainingError: of a run.
    """
    metric = deciding_metric(search.metric, job)
    check_searchable(job, job.adapter.spec, needs_plain=False)
    begun = time.perf_counter()
    settings = replace(job.settings, final="last", checkpoint_every=job.steps)
    candidates: dict[int, Candidate] = {}
    for rank in search.ranks:
        adapter = attach_rank(job, job.adapter, rank) if candidates else job.adapter
        candidates[rank] = try_rank(job, adapter, rank, settings, metric, say)
    choice = choose_candidate(candidates, metric, job.settings.seed)
    facts: SearchFacts = {
        "steps": job.steps * len(candidates),
        "seconds": round(time.perf_counter() - begun, 3),
    }
    return SearchResult(choice, candidates[choice.rank].adapter, metric, candidates, facts)
