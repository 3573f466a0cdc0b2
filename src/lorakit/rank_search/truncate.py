"""Truncation: one run at a high rank, cut to every lower rank by its singular values.

Each cut is the best adapter of its rank; it trains for a few more steps and is scored.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorakit.adapter import Adapter
from lorakit.algebra.outcome import Outcome
from lorakit.algebra.truncation import resize
from lorakit.data.encode import Example
from lorakit.data.on_demand import count_tokens
from lorakit.errors import SpecError
from lorakit.rank_search.candidate import (
    ByModule,
    Candidate,
    RankDetails,
    SearchFacts,
    SearchResult,
    check_searchable,
    choose_candidate,
    continue_training,
    deciding_metric,
    score_adapter,
)
from lorakit.rank_search.config import RankSearchSpec
from lorakit.rank_search.evidence import RowScores, best_rank
from lorakit.text import plural
from lorakit.train.job import Job
from lorakit.train.log import METRICS, Log, Say
from lorakit.train.loop import fit
from lorakit.train.progress import Progress

SCORING_SHARE = 0.12  # cost of all scoring, as a share of that of the run, counted in tokens
FORWARD_COST = 0.45  # cost of scoring a token, as a share of that of a training step
TRAINED_SHARE = 0.2  # share of the scored tokens that is of rows trained on
LEAST_EXAMPLES = 30  # held-out examples that are scored at least, if there are so many
LR_SHARE = 0.5  # learning rate after cutting, as a share of the run's


@dataclass(frozen=True)
class Cut(Candidate):
    """An adapter cut to a rank.

    Attributes:
        energy: share of the squared norm of the full change that the cut kept.
        train_metric: metric on rows that were trained on.
    """

    energy: float
    train_metric: float

    def details(self) -> RankDetails:
        return {
            "train": self.train_metric,
            "parameters": self.adapter.parameters_count,
            "energy": self.energy,
            "metrics": self.scores.metrics,
        }


@dataclass(frozen=True)
class Scoring:
    """The examples that every cut is scored on, and the steps that it trains on before.

    Attributes:
        metric: name of the metric.
        held_out: held-out examples.
        trained: examples that were trained on.
        steps: optimizer steps of each cut.
    """

    metric: str
    held_out: Sequence[Example]
    trained: Sequence[Example]
    steps: int

    def score(self, job: Job, adapter: Adapter) -> RowScores:
        """Return the scores of an adapter on the held-out examples."""
        return score_adapter(job, adapter, self.held_out, self.metric)


def truncate(job: Job, search: RankSearchSpec, say: Say = lambda message: None) -> SearchResult:
    """Train at the highest rank, cut to the lower ones, and choose the smallest that is enough.

    Each cut trains for a few steps and is then scored on held-out rows. Beside the cut with one
    rank for all modules there is one with ranks by module and the same number of parameters; the
    better of the two on the held-out rows is returned.

    Args:
        job: a job with the adapter of the highest rank attached; all files go to its output.
        search: the ranks, the metric, and how long each cut trains.
        say: called with messages for the user.

    Raises:
        SpecError: a metric that the task does not have, or no rank below that of the adapter.
        DataError: fewer than two rows are held out.
        TrainingError: of a run.
    """
    metric, full = deciding_metric(search.metric, job), job.adapter
    check_searchable(job, full.spec)
    lower = _lower_ranks(search, full)
    begun = time.perf_counter()
    progress = _train_full(job)
    one_run = time.perf_counter() - begun
    full.save(job.output)
    scoring = _plan_scoring(job, search, metric, progress.tokens, len(lower))
    say(_describe(job, search.rank, lower, scoring, one_run))

    cuts: dict[int, tuple[Adapter, float]] = {}
    for rank in lower:
        outcome = resize(full, rank=rank)
        _refine(job, outcome, scoring, f"rank-{rank}")
        cuts[rank] = (outcome.adapter, outcome.energy)
    cuts[search.rank] = (full, 1.0)
    candidates = _score_cuts(job, cuts, scoring)
    held_out_rows = len({example.row for example in job.held_out})
    choice = choose_candidate(candidates, metric, job.settings.seed, held_out_rows)

    adapter = candidates[choice.rank].adapter
    by_module: ByModule | None = None
    if choice.rank in lower:
        adapter, by_module = _compare_by_module(job, full, candidates[choice.rank], scoring)
    seconds = time.perf_counter() - begun
    facts: SearchFacts = {
        "steps": progress.step,
        "tokens": progress.tokens,
        "refined_steps": scoring.steps,
        "rows_measured": len(scoring.held_out),
        "seconds": round(seconds, 3),
        "seconds_of_one_run": round(one_run, 3),
        "cost": round(seconds / one_run, 3),
    }
    if by_module is not None:
        facts = {"by_module": by_module, **facts}
    return SearchResult(choice, adapter, metric, candidates, facts)


def _lower_ranks(search: RankSearchSpec, full: Adapter) -> list[int]:
    highest = max((delta.rank for delta in full.deltas.values()), default=0)
    lower = [rank for rank in search.ranks if rank < highest]
    if not lower:
        ranks = ", ".join(str(rank) for rank in search.ranks)
        raise SpecError(f"No rank of {ranks} is below that of the adapter.")
    return lower


def _train_full(job: Job) -> Progress:
    """Train at the highest rank."""
    job.output.mkdir(parents=True, exist_ok=True)
    return fit(job, lambda start: Log(job.output / METRICS, start, job.steps))


def _plan_scoring(job: Job, search: RankSearchSpec, metric: str, tokens: int, cuts: int) -> Scoring:
    """Choose examples to score whose cost is a small share of that of the run.

    Args:
        job: the run.
        search: settings of the search.
        metric: name of the metric.
        tokens: tokens that the run trained on.
        cuts: number of cuts; the full adapter and that by module are scored too.
    """
    allowed = math.inf
    if not search.all_rows:
        allowed = SCORING_SHARE / FORWARD_COST * tokens / (cuts + 2)
    held_out = take_share(job.held_out, allowed * (1 - TRAINED_SHARE))
    scored = sum(len(example.ids) for example in held_out)
    trained_tokens = min(allowed, scored) * TRAINED_SHARE
    trained = take_share(job.examples, trained_tokens, LEAST_EXAMPLES // 2)
    steps = round(search.refine * job.steps / (cuts + 1))
    return Scoring(metric, held_out, trained, steps)


def _describe(job: Job, rank: int, lower: Sequence[int], scoring: Scoring, one_run: float) -> str:
    """Return the message between the run and the cuts."""
    ranks = ", ".join(str(rank) for rank in lower)
    refined = f", {plural(scoring.steps, 'step')} more each" if scoring.steps else ""
    return (
        f"Rank {rank} took {one_run:.1f} s. Now {ranks}: cut{refined}, "
        f"measured on {len(scoring.held_out):,} of "
        f"{plural(len(job.held_out), 'held-out sequence')}."
    )


def _refine(job: Job, outcome: Outcome, scoring: Scoring, name: str) -> None:
    """Train a cut adapter for a few steps."""
    if scoring.steps:
        lr = LR_SHARE * job.lr
        continue_training(job, outcome.adapter, name, steps=scoring.steps, lr=lr)


def _score_cuts(
    job: Job, cuts: Mapping[int, tuple[Adapter, float]], scoring: Scoring
) -> dict[int, Cut]:
    """Return every cut with its scores on held-out rows and on rows that were trained on."""
    candidates = {}
    for rank, (adapter, energy) in cuts.items():
        scores = scoring.score(job, adapter)
        trained = score_adapter(job, adapter, scoring.trained, scoring.metric)
        candidates[rank] = Cut(adapter, scores, energy, trained.metric)
    return candidates


def _compare_by_module(
    job: Job, full: Adapter, chosen: Cut, scoring: Scoring
) -> tuple[Adapter, ByModule]:
    """Return the better of the chosen cut and of one with ranks by module.

    Both have the same number of parameters.
    """
    size = 0
    for delta in chosen.adapter.deltas.values():
        size += sum(parameter.numel() for parameter in delta.parameters())
    outcome = resize(full, parameters=size)
    _refine(job, outcome, scoring, "by-module")
    scores = scoring.score(job, outcome.adapter)
    is_better = best_rank({0: chosen.scores, 1: scores}, scoring.metric) == 1
    report: ByModule = {
        "metric": scores.metric,
        "taken": is_better,
        "parameters": outcome.adapter.parameters_count,
        "ranks": {name: delta.rank for name, delta in outcome.adapter.deltas.items()},
    }
    return outcome.adapter if is_better else chosen.adapter, report


def take_share(
    examples: Sequence[Example], tokens: float, least: int = LEAST_EXAMPLES
) -> Sequence[Example]:
    """Return evenly spaced examples that have about so many tokens together.

    Args:
        examples: all examples.
        tokens: tokens of the examples to return.
        least: examples to return at least, if there are so many.

    >>> examples = [Example(ids=[1] * 10, row=i) for i in range(8)]
    >>> [example.row for example in take_share(examples, tokens=40, least=1)]
    [0, 2, 4, 6]
    """
    total = sum(count_tokens(examples))
    if tokens >= total:
        return [*examples]
    share = int(len(examples) * tokens / total)
    count = max(min(least, len(examples)), share)
    return [examples[i * len(examples) // count] for i in range(count)]
