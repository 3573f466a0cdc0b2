"""A matrix as a graph from inputs to outputs, and through the nodes of its rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lorakit.plots.canvas import INK, SIGNS, Numbers, as_array, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 48  # nodes of a layer up to which each shows its name
LABELLED = 16  # edges between two layers up to which each shows its number
SMALL = 8  # nodes of the tallest layer up to which a graph is small
LARGE_NODE, SMALL_NODE = 620, 40  # areas in points
ROUNDS_TO_ZERO = 0.005
Edge = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """The nodes of one layer that are drawn.

    Attributes:
        x: of all nodes.
        name: of the nodes; a number follows.
        count: of all nodes, those that are left out included.
        heights: y by node.
    """

    x: int
    name: str
    count: int
    heights: dict[int, float]


def draw_graph(
    M: Numbers,
    A: Numbers,
    B: Numbers,
    *,
    title: str = "",
    strongest: int = 60,
    normalised: bool = False,
) -> "Figure":
    """Return a figure of a change as edges I to Q, and through the nodes R of its rank.

    Args:
        M: (out, in), the change: rows of numbers or a tensor.
        A: (rank, in), its edges from inputs I to R.
        B: (out, rank), its edges from R to outputs Q, the scale included.
        title: above both.
        strongest: edges between two layers that are drawn at most.
        normalised: divide each panel's weights by the largest of them.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    out, inputs, rank = len(M), len(M[0]), len(A)
    height = 5.2 if max(out, inputs) <= 5 else 7
    figure = new_figure(12, height)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
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
        figure.suptitle(title)
    return figure


def draw_layers(
    ax: "Axes",
    weights: Sequence[Numbers],
    names: Sequence[str],
    *,
    title: str,
    strongest: int = 60,
    normalised: bool = False,
) -> None:
    """Draw layers of nodes from left to right, and the edges between them.

    Blue edges add, red ones subtract, and their width is their size.

    Args:
        ax: matplotlib axes.
        weights: one matrix (nodes on its right, nodes on its left) between each two layers.
        names: of the layers' nodes; a number follows.
        title: above; the number of edges left out is added.
        strongest: edges between two layers that are drawn at most, the largest first; a node
            without edges is left out.
        normalised: divide the weights by the largest of all.
    """
    tables = [as_array(table) for table in weights]
    if normalised:
        largest = max(abs(table).max() for table in tables)
        tables = [table / largest for table in tables]
    edges = [_find_strongest_edges(table, strongest) for table in tables]
    layers = _place_layers(tables, edges, names)
    tallest = max(len(layer.heights) for layer in layers)
    small = tallest <= SMALL
    for index, table in enumerate(tables):
        _draw_edges(ax, table, edges[index], layers[index], layers[index + 1], small=small)
    for layer in layers:
        _draw_nodes(ax, layer, small=small)
        if len(layer.heights) < layer.count or not small:
            _draw_count(ax, layer, tallest)
    drawn = sum(len(some) for some in edges)
    left_out = sum(table.size for table in tables) - drawn
    if left_out:
        title += f"\nthe strongest {drawn:,} are drawn, {left_out:,} left out"
    if normalised:
        title += ", weights / largest"
    ax.set_title(title, fontsize=11)
    _frame(ax, len(tables), tallest, small=small)


def _find_strongest_edges(table: np.ndarray, count: int) -> list[Edge]:
    """Return (row, column) of the largest values, the smallest first: the largest is drawn last."""
    order = np.argsort(abs(table), axis=None)[-count:]
    places = zip(*np.unravel_index(order, table.shape), strict=True)
    return [(int(row), int(column)) for row, column in places]


def _place_layers(
    tables: Sequence[np.ndarray], edges: Sequence[list[Edge]], names: Sequence[str]
) -> list[Layer]:
    counts = [tables[0].shape[1], *(table.shape[0] for table in tables)]
    nodes: list[set[int]] = [set() for _ in counts]
    for index, some in enumerate(edges):
        nodes[index] |= {column for _, column in some}
        nodes[index + 1] |= {row for row, _ in some}
    tallest = max(len(side) for side in nodes)
    layers = []
    for x, side in enumerate(nodes):
        spacing = _spacing(len(side), tallest)
        middle = (len(side) - 1) / 2
        heights = {}
        for position, node in enumerate(sorted(side)):
            heights[node] = (position - middle) * spacing
        layers.append(Layer(x, names[x], counts[x], heights))
    return layers


def _spacing(count: int, tallest: int) -> float:
    """Return the distance between nodes of a layer.

    Small graphs keep one spacing, so that edges between neighbours stay level; large ones fill the
    height.
    """
    if tallest <= SMALL:
        return 1.0
    filling = (tallest - 1) / max(count - 1, 1)
    return filling if count > SMALL else 0.7 * filling


def _draw_edges(
    ax: "Axes", table: np.ndarray, edges: list[Edge], left: Layer, right: Layer, *, small: bool
) -> None:
    from matplotlib import colormaps

    positive, negative = colormaps[SIGNS](0.88), colormaps[SIGNS](0.12)
    largest = abs(table).max() or 1.0
    # At this share of the way, edges that leave one node have spread as far as those of its
    # neighbour, so that no two numbers meet.
    share_of_way = 1 / (len(right.heights) + 1) if small else 0.3
    for row, column in edges:
        value = table[row, column]
        start, end = left.heights[column], right.heights[row]
        strength = abs(value) / largest
        colour = positive if value >= 0 else negative
        ax.plot(
            [left.x, right.x],
            [start, end],
            color=colour,
            linewidth=0.5 + 4 * strength,
            alpha=0.25 + 0.6 * strength,
            zorder=1,
        )
        if len(edges) <= LABELLED:
            ax.text(
                left.x + share_of_way,
                start + share_of_way * (end - start),
                _short_number(value),
                ha="center",
                va="center",
                fontsize=9,
                color=colour,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
                zorder=2,
            )


def _short_number(value: float) -> str:
    shown = 0.0 if abs(value) < ROUNDS_TO_ZERO else value
    return f"{shown:.2f}".removesuffix(".00")


def _draw_nodes(ax: "Axes", layer: Layer, *, small: bool) -> None:
    count = len(layer.heights)
    large_nodes = small or count <= SMALL
    ax.scatter(
        [layer.x] * count,
        list(layer.heights.values()),
        s=LARGE_NODE if large_nodes else SMALL_NODE,
        color="white",
        edgecolor=INK,
        linewidth=1.2,
        zorder=3,
    )
    if count > NAMED:
        return
    # The name is inside a large node, and outside a small one.
    offset, align, size = 0.0, "center", 9
    if not large_nodes:
        offset, align, size = (-0.03, "right", 7) if layer.x == 0 else (0.03, "left", 7)
    for node, height in layer.heights.items():
        ax.text(
            layer.x + offset,
            height,
            f"{layer.name}{node + 1}",
            ha=align,
            va="center",
            fontsize=size,
            color=INK,
            zorder=4,
        )


def _draw_count(ax: "Axes", layer: Layer, tallest: int) -> None:
    ax.text(
        layer.x,
        (tallest - 1) / 2 + 0.06 * tallest,
        f"{len(layer.heights)} of {layer.count:,}",
        ha="center",
        va="top",
        fontsize=9,
        color=INK,
    )


def _frame(ax: "Axes", gaps: int, tallest: int, *, small: bool) -> None:
    half = (tallest - 1) / 2
    below = 0.35 if small else 0.1 * tallest
    above = 0.35 if small else 0.04 * tallest
    ax.set(xlim=(-0.2, gaps + 0.2), ylim=(half + below, -half - above))
    ax.axis("off")
