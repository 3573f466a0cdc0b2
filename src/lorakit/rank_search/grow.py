"""Growing: each rank starts from the adapter of the one before, until the rank is enough."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from lorakit.adapter import Adapter
from lorakit.deltas.base import Delta, LowRank
from lorakit.deltas.tied import TiedLowRank
from lorakit.errors import AdapterMismatch
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
from lorakit.rank_search.evidence import is_reached
from lorakit.train.job import Job
from lorakit.train.log import Say


@dataclass(frozen=True)
class Stop:
    """The rank at which growing ends, and why."""

    rank: int
    reason: str


def extend(small: Adapter, large: Adapter) -> None:
    """Copy a small adapter into a larger one of the same modules; both then do the same.

    The copy takes the first directions of each module; the columns of B of the others become zero.

    Args:
        small: the trained adapter, plain low rank.
        large: an adapter of the same modules, each of at least the rank; changed in place, the
            further rows of its A stay.

    Raises:
        AdapterMismatch: other modules, or a lower rank; nothing is changed.

    >>> from lorakit.spec import Spec
    >>> small = Adapter(Spec(rank=1), {"": LowRank(torch.ones(1, 3), torch.ones(2, 1), alpha=4.0)})
    >>> large = Adapter(Spec(rank=2), {"": LowRank(torch.ones(2, 3), torch.ones(2, 2), alpha=4.0)})
    >>> extend(small, large)
    >>> torch.equal(small.deltas[""].matrix(), large.deltas[""].matrix())
    True
    """
    faults = [
        f"{name}   is in one of the two alone"
        for name in sorted(small.deltas.keys() ^ large.deltas.keys())
    ]
    for name, delta in small.deltas.items():
        if name in large.deltas and large.deltas[name].rank < delta.rank:
            larger = large.deltas[name].rank
            faults.append(f"{name}   has rank {delta.rank}, and {larger} in the larger one")
    if faults:
        raise AdapterMismatch(
            "The second adapter is not a larger one of the same modules.",
            faults,
            "Nothing was changed.",
        )
    with torch.no_grad():
        for name, delta in small.deltas.items():
            _copy_delta(delta, large.deltas[name])
        for path, parameter in small.full_parameters.items():
            large.full_parameters[path].copy_(parameter)


def _copy_delta(small: Delta, large: Delta) -> None:
    if isinstance(small, TiedLowRank):  # Its factors are those of the embedding.
        return
    if not isinstance(small, LowRank) or not isinstance(large, LowRank):
        # Rows of tokens have no rank: all of them are copied.
        large.load_state_dict(small.state_dict())
        return
    rank = small.rank
    large.B.zero_()
    large.A[..., :rank, :] = small.A
    large.B[..., :rank] = small.B * (small.scale / large.scale)


def grow(job: Job, search: RankSearchSpec, say: Say = lambda message: None) -> SearchResult:
    """Train the smallest rank, then the next from there, until a rank is enough.

    Growing ends at a metric that is good enough, at a rank that is better than the one before by no
    more than one standard error (the one before was enough), or at the highest rank. The steps of
    the run are divided evenly among the ranks, so that all of them together take no more steps than
    one run. Growing cannot tell a gain by more rank from a gain by more steps, so it ends too late
    more often than too early.

    Args:
        job: a job with an adapter of the smallest rank attached.
        search: the ranks, the metric, and the value that is good enough.
        say: called with a message for each rank.

    Raises:
        SpecError: a metric that the task does not have.
        DataError: fewer than two rows are held out.
        TrainingError: of a run.
    """
    metric = deciding_metric(search.metric, job)
    check_searchable(job, job.adapter.spec)
    steps = max(1, job.steps // len(search.ranks))
    begun = time.perf_counter()
    candidates: dict[int, Candidate] = {}
    stop = Stop(search.rank, f"The highest rank, {search.rank}, was reached while it still helped.")
    adapter = job.adapter
    for rank in search.ranks:
        if candidates:
            adapter = _grow_adapter(job, adapter, rank)
        settings = replace(
            job.settings,
            steps=steps,
            final="last",
            checkpoint_every=steps,
            seed=job.settings.seed + len(candidates),
        )
        candidates[rank] = try_rank(job, adapter, rank, settings, metric, say)
        end = _find_end(candidates, search.good_enough, metric, job.settings.seed)
        if end:
            stop = end
            break
    return _make_result(job, candidates, metric, stop, steps, begun)


def _grow_adapter(job: Job, small: Adapter, rank: int) -> Adapter:
    """Attach a larger adapter that does the same as the small one."""
    large = attach_rank(job, small, rank)
    extend(small, large)
    return large


def _find_end(
    candidates: Mapping[int, Candidate], good_enough: float | None, metric: str, seed: int
) -> Stop | None:
    """Return the end of growing after the last candidate, or None to go on."""
    rank = max(candidates)
    last = candidates[rank]
    if good_enough is not None and is_reached(last.scores.metric, good_enough, metric):
        return Stop(rank, f"Rank {rank} reached the goal, {metric} {good_enough:g}.")
    if len(candidates) < 2:
        return None
    before = sorted(candidates)[-2]
    earlier = candidates[before]
    pair = choose_candidate({before: earlier, rank: last}, metric, seed)
    if pair.rank != before:
        return None
    error = pair.at(pair.best).error
    return Stop(
        before,
        f"Rank {rank} is no better than rank {before} by more than one standard error, "
        f"{error:.4f}: {metric} {earlier.scores.metric:.4f}, then {last.scores.metric:.4f}.",
    )


def _make_result(
    job: Job,
    candidates: Mapping[int, Candidate],
    metric: str,
    stop: Stop,
    steps: int,
    begun: float,
) -> SearchResult:
    choice = choose_candidate(candidates, metric, job.settings.seed)
    choice = replace(choice, rank=stop.rank, reason=stop.reason)
    facts: SearchFacts = {
        "steps": steps * len(candidates),
        "steps_a_rank": steps,
        "seconds": round(time.perf_counter() - begun, 3),
    }
    return SearchResult(choice, candidates[stop.rank].adapter, metric, candidates, facts)
