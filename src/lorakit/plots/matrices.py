"""Matrices as colours: one of numbers, one number of each module, the overlap of two adapters."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.analysis.report import grid_by_layer
from lorakit.plots.canvas import SIGNS, as_array, new_figure

NUMBERED = 160  # cells up to which a grid's numbers are written into it


def draw_heatmap(
    ax: Any,
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
) -> Any:
    """Draw a matrix as colours, its numbers in the cells where there is room; a missing value stays
    white.

    Args:
        ax: matplotlib axes.
        values: rows of numbers, None where there is none.
        title: above it.
        rows: labels on the left.
        columns: labels below.
        form: of the numbers.
        low: what the darkest colour stands for; the least value where None.
        high: what the brightest stands for; the largest value where None.
        colours: the name of a colour map of matplotlib.
        numbered: write the numbers into the cells, where there is room.
        bar: whether a bar beside it says which colour is which number.

    Returns:
        What matplotlib calls the image: `.get_array()` holds the numbers.
    """
    import numpy as np

    as_array = np.array(
        [[float("nan") if v is None else v for v in row] for row in values], dtype=float
    )
    image = ax.imshow(
        as_array, aspect="auto", cmap=colours, vmin=low, vmax=high, interpolation="nearest"
    )
    ax.set_title(title, fontsize=11)
    for axis, labels, count in (
        (ax.yaxis, rows, as_array.shape[0]),
        (ax.xaxis, columns, as_array.shape[1]),
    ):
        step = max(1, count // 32)
        axis.set_ticks(
            range(0, count, step), [labels[i] for i in range(0, count, step)] if labels else None
        )
    if columns and max(map(len, columns)) > 6:
        ax.tick_params(axis="x", rotation=30)
    if numbered and as_array.size <= NUMBERED:
        for (i, j), value in np.ndenumerate(as_array):
            if not np.isnan(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
                ax.text(
                    j,
                    i,
                    format(value, form),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
    if bar:
        ax.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    return image


def draw_matrices(
    matrices: Mapping[str, Any],
    *,
    title: str = "",
    signs: Sequence[str] = (),
    same_scale: bool | Sequence[str] = False,
) -> Any:
    """Return a figure of matrices side by side, each under its name: blue is above zero, red below,
    white is zero.

    Args:
        matrices: rows of numbers, or a tensor, by name; cells are of one size where that is
            possible.
        title: above all.
        signs: what stands between them, such as "+".
        same_scale: whether all are drawn on one scale of colours; or the names of those that are.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    import numpy as np

    grids = {name: as_array(rows) for name, rows in matrices.items()}
    alike = set(grids) if same_scale is True else set(same_scale or ())
    numbered = (
        max(max(table.shape) for table in grids.values()) <= 5
    )  # wider cells than a number of three digits
    # Of a large matrix a few outliers would leave all the rest white: they share the darkest
    # colour.
    tops = {
        name: float(np.quantile(abs(table), 1.0 if numbered else 0.995)) or 1.0
        for name, table in grids.items()
    }
    tops |= dict.fromkeys(alike, max((tops[name] for name in alike), default=1.0))
    # Inches: the longest side has 2.1, no side less than a quarter of that, and between two there
    # is room for a sign.
    longest, gap, low = (
        max(max(table.shape) for table in grids.values()),
        0.5,
        0.55 if title else 0.3,
    )
    sides = [[2.1 * max(n / longest, 0.25) for n in table.shape] for table in grids.values()]
    tallest, wide = max(h for h, _ in sides), sum(w for _, w in sides) + gap * (len(sides) + 1)
    high = tallest + low + 0.75
    drawn = new_figure(wide, high)
    drawn.set_layout_engine("none")
    at = gap
    for number, ((name, table), (height, width)) in enumerate(
        zip(grids.items(), sides, strict=True)
    ):
        below = 0.5 + (tallest - height) / 2
        ax = drawn.add_axes((at / wide, below / high, width / wide, height / high))
        top = tops[name]
        # Paler than the ends of the map where numbers stand in the cells.
        reach = top * 1.6 if numbered else top
        draw_heatmap(
            ax,
            table.tolist(),
            title=name,
            form=".3g",
            low=-reach,
            high=reach,
            colours=SIGNS,
            bar=False,
        )
        ax.set_xlabel(
            f"{len(table):,} × {table.shape[1]:,}"
            + ("" if numbered else f"\ncolours to ±{top:.2g}"),
            fontsize=9,
        )
        ax.set_xticks([])
        ax.set_yticks([])
        if number and number <= len(signs):
            drawn.text(
                (at - gap / 2) / wide,
                (0.5 + tallest / 2) / high,
                signs[number - 1],
                fontsize=16,
                ha="center",
                va="center",
            )
        at += width + gap
    if title:
        drawn.suptitle(title, fontsize=12)
    return drawn


def draw_change(W: Any, A: Any, B: Any, *, scale: float = 1.0, title: str = "") -> Any:
    """Return a figure of W, B, A, their sum, and what B A adds; W and the sum have one scale of
    colours, the others their own.

    Args:
        W: (out, in), rows of numbers or a tensor.
        A: (rank, in).
        B: (out, rank).
        scale: what multiplies B A.
        title: above all.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    base, down, up = (as_array(rows) for rows in (W, A, B))
    added, s = scale * (up @ down), "" if scale == 1 else f"{scale:g} "
    shown = {
        "W (frozen)": base,
        f"{s}B": up,
        "A": down,
        "W' = W + ΔW": base + added,
        f"ΔW = {s}B A": added,
    }
    return draw_matrices(
        shown, title=title, signs=("+", "·", "="), same_scale=("W (frozen)", "W' = W + ΔW")
    )


def draw_by_module(
    ax: Any,
    rows: Sequence[Mapping[str, Any]],
    key: str,
    *,
    title: str,
    percent: bool = False,
    form: str = ".3g",
) -> Any:
    """Draw one number of each module of `anatomy.describe` as a grid of layers and kinds; returns
    what `heat` does.
    """
    scaled = [{**row, key: row[key] * (100 if percent else 1)} for row in rows if key in row]
    layers, kinds, as_array = grid_by_layer(scaled, key)
    numbers = [[row[i] for i in range(len(kinds))] for row in as_array]
    image = draw_heatmap(
        ax, numbers, title=title, rows=layers, columns=shorten_names(kinds), form=form
    )
    ax.set_ylabel("layer")
    return image


def draw_similarity(ax: Any, pairs: Sequence[Mapping[str, Any]], *, title: str = "") -> Any:
    """Draw phi(i, j) of two adapters, averaged over the modules of `anatomy.beside`; returns what
    `heat` does.
    """
    tables = [pair["similarity"] for pair in pairs if "similarity" in pair]
    height, width = min(len(t) for t in tables), min(len(t[0]) for t in tables)
    mean = [
        [sum(t[i][j] for t in tables) / len(tables) for j in range(width)] for i in range(height)
    ]
    chance = sum(pair["random"] for pair in pairs if "random" in pair) / len(tables)
    image = draw_heatmap(
        ax,
        mean,
        title=title or f"shared subspace phi(i, j); random: {chance:.3f}",
        high=1.0,
        rows=[str(i + 1) for i in range(height)],
        columns=[str(j + 1) for j in range(width)],
    )
    ax.set(xlabel="top j directions of the second", ylabel="top i directions of the first")
    return image


def shorten_names(names: Sequence[str]) -> list[str]:
    """Return the shortest ends of dotted names that tell them apart.

    >>> shorten_names(["self_attn.q_proj", "mlp.up_proj"]), shorten_names(["attention.output", "mlp.output"])
    (['q_proj', 'up_proj'], ['attention.output', 'mlp.output'])
    """
    ends = [name.split(".") for name in names]
    count = next(
        (n for n in range(1, 20) if len({".".join(e[-n:]) for e in ends}) == len(ends)), 20
    )
    return [".".join(e[-count:]) for e in ends]
