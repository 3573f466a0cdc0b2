"""A matrix as a graph: from inputs to outputs, and through the nodes of its rank; of large layers
the strongest edges.
"""

from collections.abc import Sequence
from typing import Any

from lorakit.plots.canvas import INK, SIGNS, as_array, new_figure

NAMED = 48  # nodes of a layer up to which each carries its name
LABELLED = 16  # edges between two layers up to which each carries its number


def draw_graph(
    M: Any, A: Any, B: Any, *, title: str = "", strongest: int = 60, normalised: bool = False
) -> Any:
    """Return a figure of a change as edges from inputs I to outputs Q, beside the same through the
    nodes R of its rank.

    Args:
        M: (out, in), the change: rows of numbers or a tensor.
        A: (rank, in), its edges from I to R.
        B: (out, rank), its edges from R to Q, the scale included.
        title: above both.
        strongest: how many edges are drawn between two layers at most.
        normalised: whether each panel's weights are divided by the largest of them.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    drawn = new_figure(12, 5.2 if max(len(M), len(M[0])) <= 5 else 7)
    left, right = drawn.subplots(1, 2, width_ratios=(1, 1.5))
    out, inputs, rank = len(M), len(M[0]), len(A)
    draw_layers(
        left,
        [M],
        ["I", "Q"],
        title=f"ΔW: {inputs} × {out} = {inputs * out:,} edges",
        strongest=strongest,
        normalised=normalised,
    )
    draw_layers(
        right,
        [A, B],
        ["I", "R", "Q"],
        title=f"A, then B: rank {rank}, {rank * (inputs + out):,} edges",
        strongest=strongest,
        normalised=normalised,
    )
    if title:
        drawn.suptitle(title)
    return drawn


def draw_layers(
    ax: Any,
    weights: Sequence[Any],
    names: Sequence[str],
    *,
    title: str,
    strongest: int = 60,
    normalised: bool = False,
) -> None:
    """Draw layers of nodes from left to right, and what joins them: blue adds, red subtracts, width
    is size.

    Args:
        ax: matplotlib axes.
        weights: one matrix (nodes on its right, nodes on its left) between each two layers.
        names: of the layers' nodes; a number follows.
        title: above it; what is left out is added.
        strongest: edges between two layers that are drawn at most, the largest first; without edges
            a node is left out.
        normalised: whether weights are divided by the largest of all.
    """
    from matplotlib import colormaps

    tables = [as_array(table) for table in weights]
    if normalised:
        tables = [table / max(abs(t).max() for t in tables) for table in tables]
    kept = [_largest(table, strongest) for table in tables]
    left_out = sum(table.size for table in tables) - sum(map(len, kept))
    counts = [tables[0].shape[1], *(table.shape[0] for table in tables)]
    sides = [{j for _, j in kept[0]}, *({i for i, _ in found} for found in kept)]
    for at, found in enumerate(kept[1:], 1):
        sides[at] |= {j for _, j in found}
    nodes = [sorted(side) for side in sides]
    tallest = max(map(len, nodes))
    small = tallest <= 8
    # Small graphs keep one spacing, so that edges between neighbours stay level; large ones fill
    # the height.
    step = [
        1.0 if small else (tallest - 1) / max(len(side) - 1, 1) * (1.0 if len(side) > 8 else 0.7)
        for side in nodes
    ]
    place = [
        {n: (k - (len(side) - 1) / 2) * s for k, n in enumerate(side)}
        for side, s in zip(nodes, step, strict=True)
    ]
    positive, negative = colormaps[SIGNS](0.88), colormaps[SIGNS](0.12)
    for at, (table, found) in enumerate(zip(tables, kept, strict=True)):
        top, numbered = abs(table).max() or 1.0, len(found) <= LABELLED
        for i, j in found:
            value, start, end = table[i, j], place[at][j], place[at + 1][i]
            share = abs(value) / top
            colour = positive if value >= 0 else negative
            ax.plot(
                [at, at + 1],
                [start, end],
                color=colour,
                linewidth=0.5 + 4 * share,
                alpha=0.25 + 0.6 * share,
                zorder=1,
            )
            if numbered:
                # Where edges that leave one node have spread as far as those of its neighbour: no
                # two numbers meet.
                t = 1 / (len(nodes[at + 1]) + 1) if small else 0.3
                text = f"{0.0 if abs(value) < 0.005 else value:.2f}".removesuffix(".00")
                ax.text(
                    at + t,
                    start + t * (end - start),
                    text,
                    ha="center",
                    va="center",
                    fontsize=9,
                    color=colour,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
                    zorder=2,
                )
    for at, (side, where) in enumerate(zip(nodes, place, strict=True)):
        size = 620 if small or len(side) <= 8 else 40
        ax.scatter(
            [at] * len(side),
            [where[n] for n in side],
            s=size,
            color="white",
            edgecolor=INK,
            linewidth=1.2,
            zorder=3,
        )
        # In large nodes the name stands inside, beside small ones outside; where there are very
        # many, none.
        inside = size > 100
        off, align = (0.0, "center") if inside else (-0.03, "right") if at == 0 else (0.03, "left")
        for n in side if len(side) <= NAMED else []:
            ax.text(
                at + off,
                where[n],
                f"{names[at]}{n + 1}",
                ha=align,
                va="center",
                fontsize=9 if inside else 7,
                color=INK,
                zorder=4,
            )
        if len(side) < counts[at] or not small:
            ax.text(
                at,
                (tallest - 1) / 2 + 0.06 * tallest,
                f"{len(side)} of {counts[at]:,}",
                ha="center",
                va="top",
                fontsize=9,
                color=INK,
            )
    more = (
        f"\nthe strongest {sum(map(len, kept)):,} are drawn, {left_out:,} left out"
        if left_out
        else ""
    )
    ax.set_title(title + more + (", weights / largest" if normalised else ""), fontsize=11)
    half = (tallest - 1) / 2
    ax.set(
        xlim=(-0.2, len(tables) + 0.2),
        ylim=(
            half + (0.35 if small else 0.1 * tallest),
            -half - (0.35 if small else 0.04 * tallest),
        ),
    )
    ax.axis("off")


def _largest(table: Any, count: int) -> list[tuple[int, int]]:
    """Return the places of the largest values, the smallest of them first, so that the largest is
    drawn on top.
    """
    import numpy as np

    order = np.argsort(abs(table), axis=None)[-count:]
    return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, table.shape), strict=True)]
