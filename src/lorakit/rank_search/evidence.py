"""Evidence for a rank: metrics of held-out rows with intervals, and the smallest good rank."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypedDict, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorakit.data.encode import Example
from lorakit.errors import DataError, SpecError
from lorakit.evaluate.score import Scores
from lorakit.rank_search.config import CLASS_METRICS
from lorakit.train.report import Metrics

Floats = NDArray[np.float64]

DRAWS = 2000  # resamplings of the rows
LEVEL = 0.95  # of all intervals
HIGHER_IS_BETTER = CLASS_METRICS  # of "loss" less is better


@dataclass(frozen=True)
class RowScores:
    """Scores of one adapter by held-out row: the metric is sum(totals) / sum(counts).

    Attributes:
        totals: (rows,) float64: summed loss of a row, or 1 where its class was predicted.
        counts: (rows,) float64: trained tokens of a row, or 1.
        metrics: all metrics of these rows, by name.
        losses: (rows,) float64: the loss of each row, where the metric is one of classes; else
            None.
    """

    totals: Floats
    counts: Floats
    metrics: Metrics = field(default_factory=dict)
    losses: Floats | None = None

    @property
    def metric(self) -> float:
        """The metric on all rows."""
        return float(ratio(self.totals.sum(), self.counts.sum()))

    def resample(self, draws: Floats) -> Floats:
        """Return the metric of each draw, (draws,), from the count of each row in it."""
        return ratio(draws @ self.totals, draws @ self.counts)

    def by_loss(self) -> "RowScores":
        """Return the scores of the mean loss of a row, from those of a metric of classes.

        Raises:
            SpecError: the losses are not known.
        """
        if self.losses is None:
            raise SpecError(
                "losses: a metric of classes is proven by the loss of each row, and it is missing."
            )
        return RowScores(self.losses, np.ones(len(self.losses)))


def ratio(total: ArrayLike, count: ArrayLike) -> Floats:
    """Return total / count, and 0 where the count is 0.

    A count of 0 is, for instance, that of the precision of a class that was never predicted.

    >>> float(ratio(1.0, 4.0)), float(ratio(0.0, 0.0))
    (0.25, 0.0)
    """
    totals, counts = np.asarray(total, float), np.asarray(count, float)
    return np.divide(totals, counts, out=np.zeros_like(totals), where=counts > 0)


class PointRow(TypedDict):
    """A Point as reports have it."""

    rank: int
    metric: float
    low: float
    high: float
    error: float
    behind: float
    behind_low: float
    behind_high: float


@dataclass(frozen=True)
class Point:
    """One rank of the curve; all intervals hold the middle 95 % of the draws.

    Attributes:
        rank: largest rank of a module.
        metric: on the held-out rows.
        low: lower end of the metric's interval.
        high: upper end.
        error: standard error of the metric.
        behind: how much worse than the best, on the same rows; 0 of the best itself.
        behind_low: lower end of the interval of `behind`; above 0 the difference is real.
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

    def to_dict(self) -> PointRow:
        """Return the point as reports have it."""
        return cast(PointRow, asdict(self))


@dataclass(frozen=True)
class Choice:
    """A curve, the rank that is chosen from it, and why.

    Attributes:
        points: the curve, by ascending rank.
        rank: the smallest rank that is enough.
        best: the rank with the best metric.
        reason: the choice in words.
    """

    points: tuple[Point, ...]
    rank: int
    best: int
    reason: str

    def at(self, rank: int) -> Point:
        """Return the point of a rank."""
        return _point_of(self.points, rank)


def scores_by_row(scores: Scores, examples: Sequence[Example], metric: str) -> RowScores:
    """Return the scores of examples by the rows they came from; a long text has several examples.

    Args:
        scores: result of `evaluate`.
        examples: the examples that were scored.
        metric: loss, accuracy, or f1, precision or recall of class 1 of two.

    Raises:
        SpecError: the metric is not one of this task.
    """
    is_of_classes = metric in CLASS_METRICS
    if is_of_classes and not (scores.predictions and "matthews" in scores.metrics):
        raise SpecError(
            f"metric: {metric} is counted where rows have classes; here it is the loss."
        )
    rows: dict[int, int] = {}
    row_of = [rows.setdefault(example.row, len(rows)) for example in examples]

    def sum_by_row(values: Sequence[float]) -> Floats:
        return np.asarray(np.bincount(row_of, values, len(rows)), float)

    losses = sum_by_row(scores.losses)
    if not is_of_classes:
        counts = sum_by_row([float(example.trained) for example in examples])
        return RowScores(losses, counts, scores.metrics)
    fractions = [
        _class_fraction(metric, predicted, example.target)
        for (predicted, *_), example in zip(scores.predictions, examples, strict=True)
    ]
    totals = sum_by_row([float(total) for total, _ in fractions])
    counts = sum_by_row([float(count) for _, count in fractions])
    return RowScores(totals, counts, scores.metrics, losses)


def _class_fraction(metric: str, predicted: float, target: float) -> tuple[int, int]:
    """Return one example's terms in numerator and denominator of a metric of classes."""
    is_hit = predicted == 1 and target == 1
    is_predicted, is_target = int(predicted == 1), int(target == 1)
    if metric == "f1":
        return 2 * is_hit, is_predicted + is_target
    if metric == "precision":
        return int(is_hit), is_predicted
    if metric == "recall":
        return int(is_hit), is_target
    return int(predicted == target), 1


def choose_rank(
    scores: Mapping[int, RowScores], metric: str = "loss", *, seed: int = 0, held_out: int = 0
) -> Choice:
    """Return the curve, and the smallest rank within one standard error of the best rank's metric.

    The rows are resampled with replacement, with the same draws for all ranks. So each metric has
    its interval, and the difference of two ranks has one that is narrower, because both ranks saw
    the same rows.

    With `held_out` the rows must prove it, which is stricter. The allowed error is that of all
    held-out rows, so that scoring fewer of them allows no more; and the whole interval of the
    difference must lie within it. Whether a class is right is too coarse for that: of a metric of
    classes the value itself has to lie within the error, and the interval of the difference in loss
    within the error of the loss.

    Args:
        scores: scores by rank, of the same rows.
        metric: name of the metric.
        seed: seed of the draws.
        held_out: number of all held-out rows, if adapters were cut and not trained at each rank.

    Raises:
        DataError: fewer than two rows: they have no spread.

    Source: one standard error: Breiman, Friedman, Olshen and Stone, Classification and Regression
        Trees, 1984, section 3.4.3.

    >>> import numpy as np
    >>> rows = np.linspace(1.0, 3.0, 50)
    >>> gaps = {1: 0.5, 2: 0.01, 4: 0.0}
    >>> choice = choose_rank({r: RowScores(rows + gap, np.ones(50)) for r, gap in gaps.items()})
    >>> choice.rank, choice.best
    (2, 4)
    """
    ranks = sorted(scores)
    rows = len(scores[ranks[0]].totals)
    if rows < 2:
        raise DataError(
            f"Only {rows} row is held out: it has no spread, so no two ranks can be told apart.",
            advice="Give --eval-data, or a larger --eval-fraction.",
        )
    points = _make_points(scores, metric, seed)
    best = _point_of(points, best_rank(scores, metric))
    enough = {point.rank for point in points if point.behind <= best.error}
    if held_out:
        proving = points
        if metric in CLASS_METRICS:
            by_loss = {rank: of_rank.by_loss() for rank, of_rank in scores.items()}
            proving = _make_points(by_loss, "loss", seed)
        enough &= _proven_ranks(proving, math.sqrt(rows / held_out))
    rank = min(enough, default=best.rank)
    reason = _reason(points, rank, best, metric, rows, held_out)
    if rank == best.rank == ranks[-1] and len(ranks) > 1:
        reason += f" Rank {rank} is the highest that was tried: a higher one may be better still."
    return Choice(tuple(points), rank, best.rank, reason)


def _make_points(scores: Mapping[int, RowScores], metric: str, seed: int) -> list[Point]:
    """Return the curve by ascending rank."""
    ranks = sorted(scores)
    rows = len(scores[ranks[0]].totals)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(rows, np.full(rows, 1 / rows), size=DRAWS).astype(float)
    samples = {rank: scores[rank].resample(draws) for rank in scores}
    sign, best = _sign(metric), best_rank(scores, metric)
    points = []
    for rank in ranks:
        low, high = _interval(samples[rank])
        behind_low, behind_high = _interval(sign * (samples[rank] - samples[best]))
        point = Point(
            rank,
            scores[rank].metric,
            low,
            high,
            error=float(samples[rank].std(ddof=1)),
            behind=sign * (scores[rank].metric - scores[best].metric),
            behind_low=behind_low,
            behind_high=behind_high,
        )
        points.append(point)
    return points


def _sign(metric: str) -> float:
    """Return the sign that makes less of a metric better."""
    return -1.0 if metric in HIGHER_IS_BETTER else 1.0


def best_rank(scores: Mapping[int, RowScores], metric: str) -> int:
    """Return the rank with the best metric; of equal ones the smallest."""
    sign = _sign(metric)
    return min(scores, key=lambda rank: (sign * scores[rank].metric, rank))


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _proven_ranks(points: Sequence[Point], share: float) -> set[int]:
    """Return the ranks whose interval of the difference lies within a share of the best's error."""
    best = next(point for point in points if point.behind == 0)
    allowed = best.error * share
    return {point.rank for point in points if point.behind_high <= allowed}


def is_reached(metric: float, goal: float, name: str) -> bool:
    """Return True if a metric is at least as good as a goal.

    >>> is_reached(0.9, 0.8, "accuracy"), is_reached(0.9, 0.8, "loss")
    (True, False)
    """
    return metric >= goal if name in HIGHER_IS_BETTER else metric <= goal


def _point_of(points: Sequence[Point], rank: int) -> Point:
    return next(point for point in points if point.rank == rank)


def _reason(
    points: Sequence[Point], rank: int, best: Point, metric: str, rows: int, held_out: int
) -> str:
    """Return the choice of a rank in words."""
    head = (
        f"Rank {best.rank} has the best {metric}, {best.metric:.4f} "
        f"with a standard error of {best.error:.4f} on {rows:,} rows"
    )
    chosen = _point_of(points, rank)
    lower = [point for point in points if point.rank < rank]
    within = [point for point in lower if point.behind <= best.error]
    if within and held_out:
        return f"{head}; {_unproven(within[0], chosen, best, held_out)}"
    if rank != best.rank:
        return f"{head}; {_smaller_is_enough(chosen, best)}"
    if not lower:
        return f"{head}; none is smaller."
    below = lower[-1]
    return f"{head}; rank {below.rank} is {below.behind:.4f} worse, which is more than that error."


def _unproven(unproven: Point, chosen: Point, best: Point, held_out: int) -> str:
    """Return why a rank within the error was not chosen."""
    text = (
        f"rank {unproven.rank} is {unproven.behind:.4f} worse, but these rows do not show that it "
        f"is within the standard error of all {held_out:,}"
    )
    if chosen.rank == best.rank:
        return f"{text}, nor any other below {best.rank}."
    return (
        f"{text}; rank {chosen.rank} is the smallest for which they do "
        f"({chosen.metric:.4f}, {chosen.behind:.4f} worse)."
    )


def _smaller_is_enough(chosen: Point, best: Point) -> str:
    """Return why a rank below the best was chosen, and whether the difference is real."""
    text = (
        f"rank {chosen.rank} is the smallest within one standard error of it "
        f"({chosen.metric:.4f}, {chosen.behind:.4f} worse)."
    )
    if not (chosen.behind_low > 0 and math.isfinite(chosen.behind_low)):
        return text
    return (
        f"{text} On the same rows the difference is real, though: "
        f"{chosen.behind_low:.4f} to {chosen.behind_high:.4f}. "
        f"If that matters, take rank {best.rank}, or hold out more rows."
    )
