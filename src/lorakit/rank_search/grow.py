"""From a small rank upward: each rank starts from what the one before learned, until it is enough
or nothing is left.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from lorakit.adapter import Adapter
from lorakit.deltas.tied import TiedLowRank
from lorakit.errors import AdapterMismatch
from lorakit.inject.attach import attach, attached, detach
from lorakit.rank_search.candidate import (
    SearchResult,
    check_searchable,
    deciding_metric,
    score_adapter,
)
from lorakit.rank_search.config import RankSearchSpec
from lorakit.rank_search.evidence import choose_rank, is_reached
from lorakit.train.job import Job
from lorakit.train.log import METRICS, Log
from lorakit.train.loop import fit


def extend(small: Adapter, large: Adapter) -> None:
    """Write what a small adapter does into the first directions of a larger one, whose other
    directions then do nothing.

    Args:
        small: what was learned.
        large: of the same modules, each of at least the rank; is changed in place, its further rows
            of A stay.

    Raises:
        AdapterMismatch: other modules, or a lower rank; nothing is changed.

    >>> from lorakit.deltas.base import LowRank
    >>> from lorakit.spec import Spec
    >>> small, large = (Adapter(Spec(rank=r), {"": LowRank(torch.ones(r, 3), torch.ones(2, r), alpha=4.0)}) for r in (1, 2))
    >>> extend(small, large)
    >>> torch.equal(small.deltas[""].matrix(), large.deltas[""].matrix())
    True
    """
    faults = [
        f"{name}   is in one of the two alone" for name in small.deltas.keys() ^ large.deltas.keys()
    ]
    faults += [
        f"{name}   has rank {d.rank}, and {large.deltas[name].rank} in the larger one"
        for name, d in small.deltas.items()
        if name in large.deltas and large.deltas[name].rank < d.rank
    ]
    if faults:
        raise AdapterMismatch(
            "These two are no smaller and larger one.", faults, "Nothing was changed."
        )
    with torch.no_grad():
        for name, delta in small.deltas.items():
            if isinstance(delta, TiedLowRank):  # its factors are those of another
                continue
            to: Any = large.deltas[name]
            own: Any = delta
            to.B.zero_()
            to.A[..., : delta.rank, :] = own.A
            to.B[..., : delta.rank] = own.B * (own.scale / to.scale)
        for path, parameter in small.full_parameters.items():
            large.full_parameters[path].copy_(parameter)


def grow(
    job: Job, asked: RankSearchSpec, say: Callable[[str], None] = lambda text: None
) -> SearchResult:
    """Train the smallest rank, then the next from where it ended, until it is good enough, stops
    helping, or steps run out.

    The steps of the run are shared evenly by the ranks that may be tried, so that trying all of
    them takes no more steps than one run. A rank that is better than the one before by no more than
    one standard error ends it: the one before was enough. Growing cannot tell a gain from more rank
        from one from more steps, so it rather goes too far than stops short.

    Args:
        job: with an adapter of the smallest rank attached.
        asked: the ranks, and what is good enough.
        say: called with a line a rank.

    Raises:
        SpecError: a metric that the task has not.
        DataError: nothing, or one row, is held out.
        TrainingError: of a run.
    """
    metric, spec = deciding_metric(asked.metric, job), job.adapter.spec
    check_searchable(job, spec)
    steps = max(1, job.steps // len(asked.ranks))
    begun, adapter, found = time.perf_counter(), job.adapter, {}
    made: dict[int, Adapter] = {}
    why = f"The highest rank, {asked.rank}, was reached while it still helped."
    for rank in asked.ranks:
        if made:
            adapter = _next(job, made[max(made)], rank)
        folder = job.output / f"rank-{rank}"
        folder.mkdir(parents=True, exist_ok=True)
        settings = replace(
            job.settings,
            steps=steps,
            final="last",
            checkpoint_every=steps,
            seed=job.settings.seed + len(made),
        )
        fit(
            replace(job, adapter=adapter, held_out=(), settings=settings, output=folder),
            lambda start, to=folder: Log(to / METRICS, start, steps),
        )
        made[rank], found[rank] = adapter, score_adapter(job, adapter, job.held_out, metric)
        say(f"rank {rank}: {metric} {found[rank].metric:.4f}")
        if asked.good_enough is not None and is_reached(
            found[rank].metric, asked.good_enough, metric
        ):
            why = f"Rank {rank} reached what was asked, {metric} {asked.good_enough:g}."
            return _found(job, made, found, metric, rank, why, begun, steps)
        if len(made) > 1:
            before = sorted(made)[-2]
            pair = choose_rank(
                {r: found[r] for r in (before, rank)}, metric, seed=job.settings.seed
            )
            if pair.rank == before:
                error = pair.at(pair.best).error
                why = (
                    f"Rank {rank} is no better than rank {before} by more than one standard error, {error:.4f}: {metric} "
                    f"{found[before].metric:.4f}, then {found[rank].metric:.4f}."
                )
                return _found(job, made, found, metric, before, why, begun, steps)
    return _found(job, made, found, metric, asked.rank, why, begun, steps)


def _next(job: Job, small: Adapter, rank: int) -> Adapter:
    """Return a larger adapter on the model, that does what the small one did."""
    if attached(job.model):
        detach(job.model)
    spec = replace(small.spec, rank=rank)
    large = attach(job.model, spec, seed=job.settings.seed)
    large.provenance |= small.provenance
    extend(small, large)
    return large


def _found(
    job: Job,
    made: dict[int, Adapter],
    scored: dict[int, Any],
    metric: str,
    rank: int,
    why: str,
    begun: float,
    steps: int,
) -> SearchResult:
    choice = replace(choose_rank(scored, metric, seed=job.settings.seed), rank=rank, reason=why)
    extra = {
        r: {"parameters": adapter.parameters_count, "metrics": scored[r].metrics}
        for r, adapter in made.items()
    }
    facts = {
        "extra": extra,
        "steps": steps * len(made),
        "steps_a_rank": steps,
        "seconds": round(time.perf_counter() - begun, 3),
    }
    return SearchResult(choice, made[rank], metric, facts)
