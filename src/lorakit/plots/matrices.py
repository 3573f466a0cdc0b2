"""Matrices as colours: one of numbers, one number of each module, the overlap of two adapters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lorakit.analysis.report import ModuleReport, PairReport, grid_by_layer
from lorakit.plots.canvas import SIGNS, Numbers, as_array, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

NUMBERED_CELLS = 160  # cells up to which numbers are written into them
NUMBERED_SIDE = 5  # the same for matrices side by side: wider cells than three digits
MOST_TICKS = 32
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
OUTLIERS = 0.995  # quantile of a large matrix that gets the darkest colour
# Inches of matrices side by side: the longest side, the gap with room for a sign, the bottom.
SIDE, GAP, BOTTOM = 2.1, 0.5, 0.5
SMALLEST_SHARE = 0.25  # of the longest side, which a short one has at least


def draw_heatmap(
    ax: "Axes",
    values: Sequence[Sequence[float | None]],
    *,
    title: str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    form: str = ".2g",
    low: float | None = 0.0,
    high: float | None = None,
    colours: str = "viridis",
    numbered: bool = True,
    bar: bool = True,
) -> "AxesImage":
    """Draw a matrix as colours, with its numbers in the cells if there is room.

    Args:
        ax: matplotlib axes.
        values: rows of numbers; None is a missing value, and stays white.
        title: above it.
        rows: labels on the left.
        columns: labels below.
        form: of the numbers.
        low: value of the darkest colour; the least value for None.
        high: value of the brightest colour; the largest value for None.
        colours: the name of a colour map of matplotlib.
        numbered: write the numbers into the cells if there is room.
        bar: draw a bar with the scale of colours.

    Returns:
        The image; `.get_array()` holds the numbers.
    """
    table = np.array(values, dtype=float)
    image = ax.imshow(
        table, aspect="auto", cmap=colours, vmin=low, vmax=high, interpolation="nearest"
    )
    ax.set_title(title, fontsize=11)
    _label_ticks(ax, rows, columns, table.shape)
    if numbered and table.size <= NUMBERED_CELLS:
        _write_numbers(ax, image, table, form)
    if bar:
        ax.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    return image


def _label_ticks(
    ax: "Axes", rows: Sequence[str], columns: Sequence[str], shape: tuple[int, ...]
) -> None:
    sides = ((ax.yaxis, rows, shape[0]), (ax.xaxis, columns, shape[1]))
    for axis, labels, count in sides:
        ticks = range(0, count, max(1, count // MOST_TICKS))
        axis.set_ticks(ticks, [labels[tick] for tick in ticks] if labels else None)
    widest = max((len(label) for label in columns), default=0)
    if widest > 6:
        ax.tick_params(axis="x", rotation=30)


def _write_numbers(ax: "Axes", image: "AxesImage", table: np.ndarray, form: str) -> None:
    for (row, column), value in np.ndenumerate(table):
        if np.isnan(value):
            continue
        colour = image.cmap(image.norm(value))[:3]
        is_dark = np.dot(LUMINANCE, colour) < 0.55
        ax.text(
            column,
            row,
            format(value, form),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if is_dark else "black",
        )


@dataclass(frozen=True)
class Panel:
    """One matrix of several side by side.

    Attributes:
        name: above it.
        table: its numbers.
        top: value of the darkest colour.
        width: in inches.
        height: in inches.
    """

    name: str
    table: np.ndarray
    top: float
    width: float
    height: float


def draw_matrices(
    matrices: Mapping[str, Numbers],
    *,
    title: str = "",
    signs: Sequence[str] = (),
    same_scale: bool | Sequence[str] = False,
) -> "Figure":
    """Return a figure of matrices side by side: blue is above zero, red below, white is zero.

    Args:
        matrices: rows of numbers, or a tensor, by name; cells are of one size if possible.
        title: above all.
        signs: between them, such as "+".
        same_scale: True to draw all on one scale of colours; or the names of those that share one.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    tables = {name: as_array(rows) for name, rows in matrices.items()}
    longest = max(max(table.shape) for table in tables.values())
    numbered = longest <= NUMBERED_SIDE
    panels = [_panel(name, table, longest, numbered) for name, table in tables.items()]
    alike = set(tables) if same_scale is True else set(same_scale or ())
    shared = max((panel.top for panel in panels if panel.name in alike), default=1.0)
    panels = [replace(one, top=shared) if one.name in alike else one for one in panels]

    tallest = max(panel.height for panel in panels)
    width = sum(panel.width for panel in panels) + GAP * (len(panels) + 1)
    height = tallest + (0.55 if title else 0.3) + 0.75
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    left = GAP
    for index, panel in enumerate(panels):
        below = BOTTOM + (tallest - panel.height) / 2
        box = (left / width, below / height, panel.width / width, panel.height / height)
        _draw_panel(figure.add_axes(box), panel, numbered)
        if 0 < index <= len(signs):
            x, y = (left - GAP / 2) / width, (BOTTOM + tallest / 2) / height
            figure.text(x, y, signs[index - 1], fontsize=16, ha="center", va="center")
        left += panel.width + GAP
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _panel(name: str, table: np.ndarray, longest: int, numbered: bool) -> Panel:
    # A few outliers would leave the rest of a large matrix white: they share the darkest colour.
    quantile = 1.0 if numbered else OUTLIERS
    top = float(np.quantile(abs(table), quantile)) or 1.0
    height, width = (SIDE * max(count / longest, SMALLEST_SHARE) for count in table.shape)
    return Panel(name, table, top, width, height)


def _draw_panel(ax: "Axes", panel: Panel, numbered: bool) -> None:
    # With numbers in the cells the colours are paler than the ends of the map.
    limit = panel.top * 1.6 if numbered else panel.top
    draw_heatmap(
        ax,
        panel.table.tolist(),
        title=panel.name,
        form=".3g",
        low=-limit,
        high=limit,
        colours=SIGNS,
        bar=False,
    )
    rows, columns = panel.table.shape
    label = f"{rows:,} × {columns:,}"
    if not numbered:
        label += f"\ncolours to ±{panel.top:.2g}"
    ax.set_xlabel(label, fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])


def draw_change(
    W: Numbers, A: Numbers, B: Numbers, *, scale: float = 1.0, title: str = ""
) -> "Figure":
    """Return a figure of W, B, A, their sum, and the change B A.

    W and the sum share a scale of colours, the others have their own.

    Args:
        W: (out, in), rows of numbers or a tensor.
        A: (rank, in).
        B: (out, rank).
        scale: of B A.
        title: above all.

    Raises:
        MissingExtra: matplotlib is not installed.

    Source: Hu et al., LoRA, arXiv 2106.09685, section 4.1 (W, A, B).
    """
    base, down, up = as_array(W), as_array(A), as_array(B)
    change = scale * (up @ down)
    factor = "" if scale == 1 else f"{scale:g} "
    matrices = {
        "W (frozen)": base,
        f"{factor}B": up,
        "A": down,
        "W' = W + ΔW": base + change,
        f"ΔW = {factor}B A": change,
    }
    return draw_matrices(
        matrices, title=title, signs=("+", "·", "="), same_scale=("W (frozen)", "W' = W + ΔW")
    )


def draw_by_module(
    ax: "Axes",
    modules: Sequence[ModuleReport],
    key: str,
    *,
    title: str,
    percent: bool = False,
    form: str = ".3g",
) -> "AxesImage":
    """Draw one number of each module as a grid of layers and kinds, and return the image.

    Args:
        ax: matplotlib axes.
        modules: of `analysis.report.describe_modules`.
        key: of the number.
        title: above it.
        percent: show the number in per cent.
        form: of the numbers.
    """
    factor = 100 if percent else 1
    scaled = [{**module, key: module[key] * factor} for module in modules if key in module]
    grid = grid_by_layer(scaled, key)
    image = draw_heatmap(
        ax, grid.values, title=title, rows=grid.layers, columns=shorten_names(grid.kinds), form=form
    )
    ax.set_ylabel("layer")
    return image


def draw_similarity(ax: "Axes", pairs: Sequence[PairReport], *, title: str = "") -> "AxesImage":
    """Draw phi(i, j) of two adapters, the mean over modules, and return the image.

    Args:
        ax: matplotlib axes.
        pairs: of `analysis.report.compare_adapters`.
        title: above it; one with the value of chance by default.
    """
    tables = [as_array(pair["similarity"]) for pair in pairs if "similarity" in pair]
    height = min(len(table) for table in tables)
    width = min(table.shape[1] for table in tables)
    mean = np.mean([table[:height, :width] for table in tables], axis=0)
    chance = sum(pair["random"] for pair in pairs if "random" in pair) / len(tables)
    image = draw_heatmap(
        ax,
        mean.tolist(),
        title=title or f"shared subspace phi(i, j); random: {chance:.3f}",
        high=1.0,
        rows=[str(number) for number in range(1, height + 1)],
        columns=[str(number) for number in range(1, width + 1)],
    )
    ax.set(xlabel="top j directions of the second", ylabel="top i directions of the first")
    return image


def shorten_names(names: Sequence[str]) -> list[str]:
    """Return the shortest ends of dotted names that are different.

    >>> shorten_names(["self_attn.q_proj", "mlp.up_proj"])
    ['q_proj', 'up_proj']
    >>> shorten_names(["attention.output", "mlp.output"])
    ['attention.output', 'mlp.output']
    """
    parts = [name.split(".") for name in names]
    longest = max((len(one) for one in parts), default=1)
    ends = list(names)
    for count in range(1, longest + 1):
        ends = [".".join(one[-count:]) for one in parts]
        if len(set(ends)) == len(ends):
            break
    return ends
