"""Matrices as colours: one of numbers, one number of each module, the overlap of two adapters."""

from collections.abc import Sequence
from typing import Any

from lorakit.anatomy import by_layer

NUMBERED = 160  # cells up to which a grid's numbers are written into it


def heat(
    ax: Any, values: Sequence[Sequence[float | None]], *, title: str, rows: Sequence[str] = (), columns: Sequence[str] = (),
    form: str = ".2g", low: float | None = 0.0, high: float | None = None, colours: str = "viridis",
    numbered: bool = True,
) -> Any:  # fmt: skip
    """Draw a matrix as colours, its numbers in the cells where there is room; a missing value stays white.

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

    Returns:
        What matplotlib calls the image: `.get_array()` holds the numbers.
    """
    import numpy as np

    grid = np.array([[float("nan") if v is None else v for v in row] for row in values], dtype=float)
    image = ax.imshow(grid, aspect="auto", cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    ax.set_title(title, fontsize=11)
    for axis, labels, count in ((ax.yaxis, rows, grid.shape[0]), (ax.xaxis, columns, grid.shape[1])):
        step = max(1, count // 32)
        axis.set_ticks(range(0, count, step), [labels[i] for i in range(0, count, step)] if labels else None)
    if columns and max(map(len, columns)) > 6:
        ax.tick_params(axis="x", rotation=30)
    if numbered and grid.size <= NUMBERED:
        bottom, top = image.get_clim()
        for (i, j), value in np.ndenumerate(grid):
            if not np.isnan(value):
                dark = value - bottom < 0.6 * (top - bottom)
                ax.text(j, i, format(value, form), ha="center", va="center", fontsize=8, color="white" if dark else "black")
    ax.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    return image


def by_module(
    ax: Any, rows: Sequence[dict[str, Any]], key: str, *, title: str, percent: bool = False, form: str = ".3g"
) -> Any:
    """Draw one number of each module of `anatomy.describe` as a grid of layers and kinds; returns what `heat` does."""
    scaled = [{**row, key: row[key] * (100 if percent else 1)} for row in rows if key in row]
    layers, kinds, grid = by_layer(scaled, key)
    numbers = [[row[i] for i in range(len(kinds))] for row in grid]
    image = heat(ax, numbers, title=title, rows=layers, columns=short(kinds), form=form)
    ax.set_ylabel("layer")
    return image


def similarity(ax: Any, pairs: Sequence[dict[str, Any]], *, title: str = "") -> Any:
    """Draw phi(i, j) of two adapters, averaged over the modules of `anatomy.beside`; returns what `heat` does."""
    tables = [pair["similarity"] for pair in pairs if "similarity" in pair]
    height, width = min(len(t) for t in tables), min(len(t[0]) for t in tables)
    mean = [[sum(t[i][j] for t in tables) / len(tables) for j in range(width)] for i in range(height)]
    chance = sum(pair["random"] for pair in pairs if "random" in pair) / len(tables)
    image = heat(ax, mean, title=title or f"shared subspace phi(i, j); random: {chance:.3f}", high=1.0,
                 rows=[str(i + 1) for i in range(height)], columns=[str(j + 1) for j in range(width)])  # fmt: skip
    ax.set(xlabel="top j directions of the second", ylabel="top i directions of the first")
    return image


def short(names: Sequence[str]) -> list[str]:
    """Return the shortest ends of dotted names that tell them apart.

    >>> short(["self_attn.q_proj", "mlp.up_proj"]), short(["attention.output", "mlp.output"])
    (['q_proj', 'up_proj'], ['attention.output', 'mlp.output'])
    """
    ends = [name.split(".") for name in names]
    count = next((n for n in range(1, 20) if len({".".join(e[-n:]) for e in ends}) == len(ends)), 20)
    return [".".join(e[-count:]) for e in ends]
