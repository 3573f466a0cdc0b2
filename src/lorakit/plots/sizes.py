"""Numbers of parameters by width and rank, and the error that each rank reaches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from lorakit.plots.canvas import FULL, INK, LORA, hide_frame, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTHS = [2**power for power in range(4, 15)]
MILLION = 1e6


class Reached(TypedDict):
    """The error of trained LoRA at a rank, and the least there is (the tail of the SVD)."""

    rank: int
    trained: float
    tail: float


def draw_sizes(*, ranks: Sequence[int] = (1, 8, 64), width: int = 1024) -> "Figure":
    """Return a figure of parameters by the width of a square matrix, and by the rank.

    Args:
        ranks: of the lines on the left.
        width: of the matrix on the right.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = new_figure(12.5, 4.8)
    left, right = figure.subplots(1, 2)
    _draw_by_width(left, ranks)
    _draw_by_rank(right, width)
    for ax in (left, right):
        hide_frame(ax)
    return figure


def _draw_by_width(ax: "Axes", ranks: Sequence[int]) -> None:
    full = [width**2 for width in WIDTHS]
    ax.plot(WIDTHS, full, color=FULL, linewidth=2.5)
    _label_end(ax, "d²", full[-1], FULL)
    for rank in ranks:
        values = [2 * rank * width for width in WIDTHS]
        first = sum(value >= whole for value, whole in zip(values, full, strict=True))
        ax.plot(WIDTHS, values, color=LORA, linewidth=1, linestyle=":")
        ax.plot(WIDTHS[first:], values[first:], color=LORA, linewidth=2.5)
        _label_end(ax, f"r = {rank}", values[-1], LORA)
    _note(ax, "the whole matrix: d²\n(slope 2)", (2**9, 2**18), (-12, 4), FULL, ha="right")
    _note(ax, "A and B: 2 d r\n(slope 1)", (2**9, 2**10 * ranks[0]), (8, -10), LORA, va="top")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ticks = WIDTHS[::2]
    ax.set_xticks(ticks, [f"{width:,}" for width in ticks])
    ax.set(xlabel="width d of the layer (d × d)", ylabel="parameters that are trained")
    ax.set_title("The whole grows with d², a rank with d (dotted: no saving)", fontsize=11)


def _draw_by_rank(ax: "Axes", width: int) -> None:
    whole = width * width / MILLION
    even = width / 2
    last = 1.5 * even
    value_at_last = 2 * width * last / MILLION
    ax.axhline(whole, color=FULL, linewidth=2.5)
    ax.plot([0, last], [0, value_at_last], color=LORA, linewidth=2.5)
    ax.fill_between(
        [even, last], [whole, whole], [whole, value_at_last], color=LORA, alpha=0.15, linewidth=0
    )
    ax.plot([even], [whole], marker="o", color=INK, zorder=3)
    _note(ax, f"break-even: r = {even:,.0f}", (even, whole), (10, -9), INK, va="top")
    _note(ax, f"the whole matrix: {width * width:,}", (0, whole), (4, 5), FULL, va="baseline")
    _note(ax, "A and B: 2 d r", (even / 2, whole / 2), (10, -10), LORA, va="top")
    ax.set(
        xlabel="rank r",
        ylabel="parameters that are trained, in millions",
        xlim=(0, last),
        ylim=(0, None),
    )
    title = f"A layer of {width:,} × {width:,}: usual ranks are at the very left"
    ax.set_title(title, fontsize=11)


def _label_end(ax: "Axes", text: str, height: float, colour: str) -> None:
    _note(ax, text, (WIDTHS[-1], height), (6, 0), colour, va="center")


def _note(
    ax: "Axes",
    text: str,
    point: tuple[float, float],
    offset: tuple[float, float],
    colour: str,
    *,
    ha: str = "left",
    va: str = "baseline",
) -> None:
    ax.annotate(text, point, offset, textcoords="offset points", ha=ha, va=va, color=colour)


def draw_reached(rows: Sequence[Reached]) -> "Figure":
    """Return a figure of the error at each rank: of trained LoRA, and the least there is.

    Args:
        rows: by rank.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = new_figure(7, 4.5)
    ax = figure.subplots()
    ranks = [row["rank"] for row in rows]
    tails = [row["tail"] for row in rows]
    trained = [row["trained"] for row in rows]
    label = "the least there is: the singular values left out"
    ax.plot(ranks, tails, color=FULL, linewidth=2.5, label=label)
    ax.plot(
        ranks, trained, color=LORA, linestyle="", marker="o", markersize=9, label="LoRA, trained"
    )
    ax.set(
        xlabel="rank",
        ylabel="error |s B A − ΔW|",
        ylim=(-0.05 * tails[0], None),
        xticks=ranks,
    )
    ax.set_title("Trained LoRA reaches the least error of each rank", fontsize=11)
    ax.legend(frameon=False)
    hide_frame(ax)
    return figure
