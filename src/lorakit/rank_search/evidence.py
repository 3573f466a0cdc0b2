"""What held-out rows say about a rank: a metric with its interval, the pairs of two ranks, and the
smallest that is enough.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorakit.data.encode import Example
from lorakit.errors import DataError, SpecError
from lorakit.evaluate.score import Scores

DRAWS = 2000  # of the rows, with replacement
LEVEL = 0.95  # of all intervals
HIGHER_IS_BETTER = (
    "accuracy",
    "f1",
    "precision",
    "recall",
)  # metrics of which more is better; of "loss" less is

# What a row adds above and below the line, from the class that was said and the one that is; those
# below the first, of class 1.
COUNTED = {
    "accuracy": lambda said, true: (said == true, 1),
    "f1": lambda said, true: (2 * (said == true == 1), (said == 1) + (true == 1)),
    "precision": lambda said, true: (said == true == 1, said == 1),
    "recall": lambda said, true: (said == true == 1, true == 1),
}


@dataclass(frozen=True)
class RowScores:
    """One adapter on the held-out rows: the metric is the sum of `totals` over that of `counts`.

    Attributes:
        totals: (rows,) float64: summed loss of a row, or 1 where its class was found.
        counts: (rows,) float64: trained tokens of a row, or 1.
        metrics: all that was measured, by name.
        losses: (rows,) float64: the loss of each row of a class, where another metric is asked.
    """

    totals: Any
    counts: Any
    metrics: dict[str, Any] = field(default_factory=dict)
    losses: Any = None

    @property
    def metric(self) -> float:
        return float(ratio(self.totals.sum(), self.counts.sum()))


def ratio(total: Any, count: Any) -> Any:
    """Return total / count, and 0 where nothing was counted: the precision of a class that was
    never said.

    >>> float(ratio(1.0, 4.0)), float(ratio(0.0, 0.0))
    (0.25, 0.0)
    """
    total, count = np.asarray(total, float), np.asarray(count, float)
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


@dataclass(frozen=True)
class Point:
    """What is known of one rank; all intervals are of the middle 95 %.

    Attributes:
        rank: of every module at most.
        metric: on the held-out rows.
        low: lower end of the metric's interval.
        high: upper end.
        error: standard error of the metric.
        behind: how much worse than the best, on the same rows; 0 of the best itself.
        behind_low: lower end of the interval of `behind`: above 0 the rows do tell the two apart.
        behind_high: upper end.
    """

    rank: int
    metric: float
    low: float
    high: float
    error: float
    behind: float
    behind_low: float
    behind_high: float


@dataclass(frozen=True)
class Choice:
    """A curve, and what follows from it."""

    points: tuple[Point, ...]
    rank: int
    best: int
    reason: str

    def at(self, rank: int) -> Point:
        """Return the point of a rank."""
        return next(point for point in self.points if point.rank == rank)


def scores_by_row(scores: Scores, examples: Sequence[Example], metric: str) -> RowScores:
    """Return the scores of examples by the rows they came from: a long text is several examples,
    and one row.

    Args:
        scores: of `evaluate`.
        examples: those that were scored.
        metric: loss, accuracy, or f1, precision or recall of class 1 of two.

    Raises:
        SpecError: the metric is not one of this task.
    """
    if metric in HIGHER_IS_BETTER and not (scores.predictions and "accuracy" in scores.metrics):
        raise SpecError(
            f"metric: {metric} is counted where rows have classes; here it is the loss."
        )
    index: dict[int, int] = {}
    places = [index.setdefault(e.row, len(index)) for e in examples]
    if metric in HIGHER_IS_BETTER:
        pairs = [
            (value, e.target) for (value, _), e in zip(scores.predictions, examples, strict=True)
        ]
        values, sizes = (
            [float(part[i]) for part in map(COUNTED[metric], *zip(*pairs, strict=True))]
            for i in (0, 1)
        )
    else:
        values, sizes = scores.losses, [float(e.trained) for e in examples]
    totals, counts, losses = (
        np.bincount(places, part, len(index)) for part in (values, sizes, scores.losses)
    )
    return RowScores(totals, counts, scores.metrics, losses if metric in HIGHER_IS_BETTER else None)


def choose_rank(
    scored: Mapping[int, RowScores], metric: str = "loss", *, seed: int = 0, of: int = 0
) -> Choice:
    """Return the curve, and the smallest rank whose metric is within one standard error of the best
    one's.

    The rows are drawn anew, with replacement, the same for all ranks: so each metric gets its
        interval, and the difference
    of two ranks gets its own, which is narrower because both saw the same rows.

    With `of` the rows must show it: the error is that of all these rows, so measuring on few of
    them allows no more, and the whole interval of the difference must lie within it. Whether a row
    is right is too coarse for that: of a metric of classes the value itself must be within the
        error, and the interval of the difference in loss within that of the loss.

    Args:
        scored: by rank, each on the same rows.
        metric: its name; of "accuracy" more is better.
        seed: of the draws.
        of: held-out rows that there are, if what was cut is judged and not what was trained at each
            rank.

    Raises:
        DataError: fewer than two rows: they have no spread.

    Source: one standard error: Breiman, Friedman, Olshen and Stone, Classification and Regression
        Trees, 1984, section 3.4.3.

    >>> import numpy as np
    >>> rows = np.linspace(1.0, 3.0, 50)
    >>> told = choose_rank({r: RowScores(rows + gap, np.ones(50)) for r, gap in ((1, 0.5), (2, 0.01), (4, 0.0))})
    >>> told.rank, told.best
    (2, 4)
    """
    ranks = sorted(scored)
    rows = len(scored[ranks[0]].totals)
    if rows < 2:
        raise DataError(
            f"Only {rows} row is held out: it has no spread, so no two ranks can be told apart.",
            advice="Give --eval-data, or a larger --eval-fraction.",
        )
    sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0
    draws = (
        np.random.default_rng(seed)
        .multinomial(rows, np.full(rows, 1 / rows), size=DRAWS)
        .astype(float)
    )
    drawn = {r: ratio(draws @ s.totals, draws @ s.counts) for r, s in scored.items()}
    best = min(ranks, key=lambda r: (sign * scored[r].metric, r))
    points = []
    for r in ranks:
        gap = sign * (drawn[r] - drawn[best])
        behind = sign * (scored[r].metric - scored[best].metric)
        points.append(
            Point(
                r,
                scored[r].metric,
                *_middle(drawn[r]),
                float(drawn[r].std(ddof=1)),
                behind,
                *_middle(gap),
            )
        )
    error = next(p.error for p in points if p.rank == best)
    enough = {p.rank for p in points if p.behind <= error}
    if of and metric in HIGHER_IS_BETTER:
        losses = {r: RowScores(s.losses, np.ones(rows)) for r, s in scored.items()}
        enough &= _shown(choose_rank(losses, seed=seed).points, (rows / of) ** 0.5)
    elif of:
        enough &= _shown(points, (rows / of) ** 0.5)
    rank = min(enough, default=best)
    reason = _reason(points, rank, best, metric, rows, of)
    if rank == best == ranks[-1] and len(ranks) > 1:
        reason += f" Rank {rank} is the highest that was tried: a higher one may be better still."
    return Choice(tuple(points), rank, best, reason)


def _shown(points: Sequence[Point], share: float) -> set[int]:
    """Return the ranks whose whole interval of the difference from the best lies within the best
    one's error, scaled.
    """
    error = next(p.error for p in points if p.behind == 0) * share
    return {p.rank for p in points if p.behind_high <= error}


def is_reached(metric: float, goal: float, name: str) -> bool:
    """Tell whether a metric is as good as was asked for.

    >>> is_reached(0.9, 0.8, "accuracy"), is_reached(0.9, 0.8, "loss")
    (True, False)
    """
    return metric >= goal if name in HIGHER_IS_BETTER else metric <= goal


def _middle(values: Any) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _reason(points: Sequence[Point], rank: int, best: int, metric: str, rows: int, of: int) -> str:
    at, top = (next(p for p in points if p.rank == r) for r in (rank, best))
    told = f"Rank {best} has the best {metric}, {top.metric:.4f} with a standard error of {top.error:.4f} on {rows:,} rows"
    less = [p for p in points if p.rank < rank and p.behind <= top.error]
    if less and of:
        told += (
            f"; rank {less[0].rank} is {less[0].behind:.4f} worse, but these rows do not show it to be within the error "
            f"of all {of:,}"
        )
        if rank == best:
            return f"{told}, nor any other below {best}."
        return f"{told}; rank {rank} is the smallest that they do ({at.metric:.4f}, {at.behind:.4f} worse)."
    if rank == best:
        lower = [p for p in points if p.rank < rank]
        return f"{told}; " + (
            f"rank {lower[-1].rank} is {lower[-1].behind:.4f} worse, which is more than that."
            if lower
            else "none is smaller."
        )
    told += (
        f"; rank {rank} is the smallest within that of it ({at.metric:.4f}, {at.behind:.4f} worse)."
    )
    if at.behind_low > 0 and math.isfinite(at.behind_low):
        told += (
            f" On the same rows the difference is real, though: {at.behind_low:.4f} to {at.behind_high:.4f}. "
            f"If that matters, take rank {best}, or hold out more rows."
        )
    return told
