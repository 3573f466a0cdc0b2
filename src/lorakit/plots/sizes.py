"""How many parameters, against width and rank; and what each rank reaches."""

from collections.abc import Sequence
from typing import Any

from lorakit.plots.canvas import FULL, INK, LORA, new_figure

WIDTHS = [2**n for n in range(4, 15)]


def draw_sizes(*, ranks: Sequence[int] = (1, 8, 64), width: int = 1024) -> Any:
    """Return a figure: parameters against the width d of a square matrix, and against the rank.

    Args:
        ranks: of the lines on the left.
        width: of the matrix on the right.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    drawn = new_figure(12.5, 4.8)
    left, right = drawn.subplots(1, 2)
    left.plot(WIDTHS, [d * d for d in WIDTHS], color=FULL, linewidth=2.5)
    ends = {"d²": (WIDTHS[-1] ** 2, FULL)}
    for rank in ranks:
        saving = [d for d in WIDTHS if 2 * rank * d < d * d]
        left.plot(WIDTHS, [2 * rank * d for d in WIDTHS], color=LORA, linewidth=1, linestyle=":")
        left.plot(saving, [2 * rank * d for d in saving], color=LORA, linewidth=2.5)
        ends[f"r = {rank}"] = 2 * rank * WIDTHS[-1], LORA
    for label, (height, colour) in ends.items():
        left.annotate(
            label,
            (WIDTHS[-1], height),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    left.annotate(
        "the whole matrix: d²\n(slope 2)",
        (2**9, 2**18),
        (-12, 4),
        textcoords="offset points",
        ha="right",
        color=FULL,
    )
    left.annotate(
        "A and B: 2 d r\n(slope 1)",
        (2**9, 2**10 * ranks[0]),
        (8, -10),
        textcoords="offset points",
        va="top",
        color=LORA,
    )
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    left.set_xticks(WIDTHS[::2], [f"{d:,}" for d in WIDTHS[::2]])
    left.set(xlabel="width d of the layer (d × d)", ylabel="parameters that are trained")
    left.set_title("The whole goes with d², a rank with d (dotted: no saving)", fontsize=11)

    most, even = width * width, width / 2
    at = [0, even * 1.5]
    right.axhline(most / 1e6, color=FULL, linewidth=2.5)
    right.plot(at, [2 * width * r / 1e6 for r in at], color=LORA, linewidth=2.5)
    right.fill_between(
        [even, at[1]],
        [most / 1e6] * 2,
        [most / 1e6, 2 * width * at[1] / 1e6],
        color=LORA,
        alpha=0.15,
        linewidth=0,
    )
    right.plot([even], [most / 1e6], marker="o", color=INK, zorder=3)
    right.annotate(
        f"break-even: r = {even:,.0f}",
        (even, most / 1e6),
        (10, -9),
        textcoords="offset points",
        va="top",
        color=INK,
    )
    right.annotate(
        f"the whole matrix: {most:,}",
        (0, most / 1e6),
        (4, 5),
        textcoords="offset points",
        color=FULL,
    )
    right.annotate(
        "A and B: 2 d r",
        (even / 2, most / 2e6),
        (10, -10),
        textcoords="offset points",
        va="top",
        color=LORA,
    )
    right.set(
        xlabel="rank r",
        ylabel="parameters that are trained, in millions",
        xlim=(0, at[1]),
        ylim=(0, None),
    )
    right.set_title(
        f"A layer of {width:,} × {width:,}: usual ranks lie at the very left", fontsize=11
    )
    for ax in (left, right):
        hide_frame(ax)
    return drawn


def draw_reached(rows: Sequence[dict[str, Any]]) -> Any:
    """Return a figure of what is left of a change at each rank: trained, beside the best there is.

    Args:
        rows: with `rank`, `trained` and `tail`.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    drawn = new_figure(7, 4.5)
    ax = drawn.subplots()
    ranks = [row["rank"] for row in rows]
    ax.plot(
        ranks,
        [row["tail"] for row in rows],
        color=FULL,
        linewidth=2.5,
        label="the best there is: what the SVD leaves out",
    )
    ax.plot(
        ranks,
        [row["trained"] for row in rows],
        color=LORA,
        linestyle="",
        marker="o",
        markersize=9,
        label="LoRA, trained",
    )
    ax.set(
        xlabel="rank",
        ylabel="|s B A − ΔW|, what is missing",
        ylim=(-0.05 * rows[0]["tail"], None),
        xticks=ranks,
    )
    ax.set_title("Trained LoRA lands on the best of each rank", fontsize=11)
    ax.legend(frameon=False)
    hide_frame(ax)
    return drawn


def hide_frame(ax: Any) -> None:
    """Leave of the frame what carries numbers."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
