"""Methods in comparison: quality with its interval, and costs."""

from collections.abc import Mapping, Sequence
from math import floor, log10
from typing import TYPE_CHECKING, NamedTuple, SupportsFloat, cast

from lorakit.errors import SpecError
from lorakit.plots.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Cost(NamedTuple):
    """A cost that is drawn as bars: its title, the divisor of its values, and their form."""

    title: str
    unit: float
    form: str


COSTS = {
    "seconds": Cost("CPU seconds", 1, "{:.3g}"),
    "memory_bytes": Cost("memory beside\nthe weights, MiB", 2**20, "{:.3g}"),
    "parameters": Cost("parameters trained\n(log scale)", 1, "{:,.0f}"),
}
BEST, OTHER, BAR = "#1b6ca8", "#7a7a7a", "#c9d6df"
Row = Mapping[str, object]


class Score(NamedTuple):
    """The quality of one method, with its interval."""

    method: str
    value: float
    low: float
    high: float


def draw_methods(
    rows: Sequence[Row],
    *,
    quality: str = "accuracy",
    reference: str = "",
    title: str = "",
    costs: Mapping[str, tuple[str, float, str]] = COSTS,
) -> "Figure":
    """Return a figure with a line for each method: its quality with its interval, and its costs.

    Methods whose interval reaches the best value are blue: these rows alone do not rank them.

    Args:
        rows: from the top, each with "method" and the quality, and if known "low" and "high" (its
            interval) and the costs.
        quality: the key of the values compared.
        reference: a method whose interval is drawn through all lines.
        title: above all.
        costs: by key: title, divisor of the values, and their form. A cost that no row has is left
            out.

    Raises:
        SpecError: no rows, a row without the quality, or a reference that is not among the rows.
        MissingExtra: matplotlib is not installed.
    """
    _check(rows, quality, reference)
    scores = [_score(row, quality) for row in rows]
    shown = {key: Cost(*cost) for key, cost in costs.items() if any(row.get(key) for row in rows)}
    figure = new_figure(6.5 + 2.4 * len(shown), 1.7 + 0.42 * len(rows))
    axes = figure.subplots(
        1, 1 + len(shown), sharey=True, squeeze=False, width_ratios=[2.4] + [1] * len(shown)
    )[0]
    _draw_quality(axes[0], scores, quality, reference)
    for ax, (key, cost) in zip(axes[1:], shown.items(), strict=True):
        values = [_divide(row.get(key), cost.unit) for row in rows]
        _draw_cost(ax, values, cost)
    axes[0].set_yticks(range(len(rows)), [score.method for score in scores])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    if title:
        figure.suptitle(title)
    return figure


def _check(rows: Sequence[Row], quality: str, reference: str) -> None:
    if not rows:
        raise SpecError("There is nothing to draw: no rows.")
    lacking = [str(row.get("method", "?")) for row in rows if row.get(quality) is None]
    if lacking:
        raise SpecError(f"There is nothing to draw: {', '.join(lacking)}: no {quality}.")
    if reference and reference not in [row.get("method") for row in rows]:
        raise SpecError(f"There is nothing to draw: no method {reference!r}.")


def _score(row: Row, quality: str) -> Score:
    value = _number(row[quality])
    low = _number(row.get("low", value))
    high = _number(row.get("high", value))
    return Score(str(row["method"]), value, low, high)


def _divide(value: object, unit: float) -> float | None:
    return None if value is None else _number(value) / unit


def _number(value: object) -> float:
    """Return a number, or a tensor or array of one number, as a float."""
    return float(cast(SupportsFloat, value))


def _draw_quality(ax: "Axes", scores: Sequence[Score], quality: str, reference: str) -> None:
    best = max(score.value for score in scores)
    for height, score in enumerate(scores):
        if reference and score.method == reference:
            ax.axvspan(score.low, score.high, color=BAR, alpha=0.5, linewidth=0)
            ax.axvline(score.value, color=OTHER, linewidth=1, linestyle="--")
        _draw_score(ax, score, height, BEST if score.high >= best else OTHER)
    ax.set_title(f"{quality}, with its 95 % interval", fontsize=11)
    ax.grid(axis="x", alpha=0.25)


def _draw_score(ax: "Axes", score: Score, height: int, colour: str) -> None:
    ax.plot(
        [score.low, score.high],
        [height, height],
        color=colour,
        linewidth=2.5,
        solid_capstyle="butt",
    )
    ax.plot([score.value], [height], color=colour, marker="o", markersize=7)
    ax.annotate(
        f"{score.value:.3f}",
        (score.value, height),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )


def _draw_cost(ax: "Axes", values: Sequence[float | None], cost: Cost) -> None:
    known = [value for value in values if value] or [1.0]
    lengths = [value or 0.0 for value in values]
    ax.barh(range(len(values)), lengths, color=BAR, height=0.62)
    if "log" in cost.title:
        ax.set_xscale("log")
        ax.set_xlim(10 ** (floor(log10(min(known))) - 0.3), max(known) * 400)
    else:
        ax.set_xlim(0, max(known) * 1.45)
    for height, value in enumerate(values):
        ax.annotate(
            "" if value is None else cost.form.format(value),
            (value or 0.0, height),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    ax.set_title(cost.title, fontsize=11)
    ax.tick_params(axis="x", labelsize=8)
