"""Methods side by side: how good each is and how sure that is, and what it costs."""

from collections.abc import Mapping, Sequence
from math import floor, log10
from typing import Any

from lorakit.errors import SpecError
from lorakit.plots.canvas import new_figure

# What is drawn beside the quality, where rows have it: title, what a value is divided by, its form.
COSTS = {
    "seconds": ("CPU seconds", 1, "{:.3g}"),
    "memory_bytes": ("memory beside\nthe weights, MiB", 2**20, "{:.3g}"),
    "parameters": ("parameters trained\n(log scale)", 1, "{:,.0f}"),
}
GOOD, PLAIN, COST = "#1b6ca8", "#7a7a7a", "#c9d6df"


def draw_methods(
    rows: Sequence[Mapping[str, Any]],
    *,
    quality: str = "accuracy",
    reference: str = "",
    title: str = "",
    costs: Mapping[str, tuple[str, float, str]] = COSTS,
) -> Any:
    """Return one figure: a line a method, its quality as a point with its interval, its costs as
    bars beside.

    Blue are the methods whose interval reaches the best: these rows alone do not rank them.

    Args:
        rows: in order from above, each with method, the quality, and where known low and high (its
            interval) and the costs.
        quality: the key of what is compared.
        reference: a method whose interval is drawn through all lines, to compare with.
        title: above all.
        costs: by key: title, what values are divided by, and their form. A cost that no row has is
            left out.

    Raises:
        SpecError: no rows, a row without the quality, or a reference that is no row.
        MissingExtra: matplotlib is not installed.
    """
    lacking = [str(row.get("method", "?")) for row in rows if row.get(quality) is None]
    against = [row for row in rows if row.get("method") == reference]
    if not rows or lacking or (reference and not against):
        what = (
            f"{', '.join(lacking)}: no {quality}"
            if lacking
            else f"no method {reference!r}"
            if rows
            else "no rows"
        )
        raise SpecError(f"There is nothing to draw: {what}.")
    shown = {key: told for key, told in costs.items() if any(row.get(key) for row in rows)}
    drawn = new_figure(6.5 + 2.4 * len(shown), 1.7 + 0.42 * len(rows))
    axes = drawn.subplots(
        1, 1 + len(shown), sharey=True, squeeze=False, width_ratios=[2.4, *(1 for _ in shown)]
    )[0]
    _quality(axes[0], rows, quality, against)
    for ax, (key, (label, unit, form)) in zip(axes[1:], shown.items(), strict=True):
        _cost(
            ax,
            [row.get(key) and row[key] / unit for row in rows],
            label,
            form,
            logarithmic="log" in label,
        )
    axes[0].set_yticks(range(len(rows)), [str(row["method"]) for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    if title:
        drawn.suptitle(title)
    return drawn


def _quality(
    ax: Any, rows: Sequence[Mapping[str, Any]], quality: str, against: Sequence[Mapping[str, Any]]
) -> None:
    best = max(row[quality] for row in rows)
    for row in against:
        ax.axvspan(
            row.get("low", row[quality]),
            row.get("high", row[quality]),
            color=COST,
            alpha=0.5,
            linewidth=0,
        )
        ax.axvline(row[quality], color=PLAIN, linewidth=1, linestyle="--")
    for at, row in enumerate(rows):
        value = row[quality]
        low, high = row.get("low", value), row.get("high", value)
        colour = GOOD if high >= best else PLAIN
        ax.plot([low, high], [at, at], color=colour, linewidth=2.5, solid_capstyle="butt")
        ax.plot([value], [at], color=colour, marker="o", markersize=7)
        ax.annotate(
            f"{value:.3f}",
            (value, at),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    ax.set_title(f"{quality}, with its 95 % interval", fontsize=11)
    ax.grid(axis="x", alpha=0.25)


def _cost(
    ax: Any, values: Sequence[float | None], label: str, form: str, *, logarithmic: bool
) -> None:
    known = [v for v in values if v]
    ax.barh(range(len(values)), [v or 0 for v in values], color=COST, height=0.62)
    if logarithmic:
        ax.set_xscale("log")
        ax.set_xlim(10 ** (floor(log10(min(known))) - 0.3), max(known) * 400)
    else:
        ax.set_xlim(0, max(known) * 1.45)
    for at, value in enumerate(values):
        text = "" if value is None else form.format(value)
        ax.annotate(
            text,
            (value or 0, at),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    ax.set_title(label, fontsize=11)
    ax.tick_params(axis="x", labelsize=8)
