"""Pictures of an adapter, drawn on axes that the caller gives or as one figure. Needs matplotlib: `lorakit[plot]`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.anatomy import by_layer
from lorakit.errors import MissingExtra, OutputError, near

NUMBERED = 160  # cells up to which a grid's numbers are written into it


def figure(width: float = 12, height: float = 7) -> Any:
    """Return an empty matplotlib Figure; it knows no window and no global state.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("Pictures need matplotlib, which is not installed.", advice="pip install 'lorakit[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def check(path: str | Path) -> None:
    """Refuse, before anything is computed, a file that no picture could be written to.

    Raises:
        MissingExtra: matplotlib is not installed.
        OutputError: the ending is of no kind of picture, or there is no such folder.
    """
    kinds, path = figure().canvas.get_supported_filetypes(), Path(path)
    ending = path.suffix.removeprefix(".").lower()
    if ending not in kinds:
        told = f"{'.' + ending if ending else 'no ending'} is no kind of picture. {near(ending, kinds)}".rstrip()
        raise OutputError(f"{path}: {told}",
                          advice=f"Known: {', '.join(sorted(kinds))}. Nothing was written.")  # fmt: skip
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(f"{path} {'is a folder' if path.is_dir() else 'is in no folder that is there'}.",
                          advice="Nothing was written.")  # fmt: skip


def save(drawn: Any, path: str | Path) -> Path:
    """Write a figure, atomically; the ending of the name says which kind of file."""
    check(path)
    path = Path(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        drawn.savefig(part, dpi=120)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def heat(
    ax: Any, values: Sequence[Sequence[float | None]], *, title: str, rows: Sequence[str] = (), columns: Sequence[str] = (),
    form: str = ".2g", low: float | None = 0.0, high: float | None = None, colours: str = "viridis",
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
    if grid.size <= NUMBERED:
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


def spectrum(ax: Any, rows: Sequence[dict[str, Any]], *, title: str = "singular values, by the largest of each module") -> None:
    """Draw each module's singular values as a thin line, and the mean of each kind of module as a thick one."""
    lines: dict[str, list[list[float]]] = {}
    for row in rows:
        values = row["singular_values"]
        if row["norm"] and not isinstance(values[0], list):
            lines.setdefault(_kind(row["name"]), []).append([value / values[0] for value in values])
    names = dict(zip(lines, short(list(lines)), strict=True))
    for number, (kind, many_of) in enumerate(lines.items()):
        colour = f"C{number % 10}"
        for one in many_of:
            ax.plot(range(1, len(one) + 1), one, color=colour, linewidth=0.6, alpha=0.35)
        width = min(map(len, many_of))
        mean = [sum(one[i] for one in many_of) / len(many_of) for i in range(width)]
        ax.plot(range(1, width + 1), mean, color=colour, linewidth=2.2, marker="o", markersize=3, label=names[kind])
    ax.set(xlabel="direction", ylim=(0, 1.05))
    ax.set_title(title, fontsize=11)
    if lines:
        ax.legend(fontsize=8, loc="lower left")
        longest = max(len(one) for many_of in lines.values() for one in many_of)
        ax.set_xticks(range(1, longest + 1, max(1, longest // 8)))


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


def curves(
    ax: Any, lines: Mapping[str, Sequence[tuple[float, float, float, float]]], *, title: str, x: str, y: str,
    powers: bool = False,
) -> None:  # fmt: skip
    """Draw lines with a band each.

    Args:
        ax: matplotlib axes.
        lines: by label: (x, y, low, high), ascending in x; a band is drawn where low and high differ.
        title: above it.
        x: label below.
        y: label on the left.
        powers: whether x goes in powers of two, each value of it with its number.
    """
    for number, (label, points) in enumerate(lines.items()):
        at, middle, low, high = ([p[i] for p in points] for i in range(4))
        ax.plot(at, middle, color=f"C{number % 10}", linewidth=2, marker="o", markersize=4, label=label)
        if any(a != b for a, b in zip(low, high, strict=True)):
            ax.fill_between(at, low, high, color=f"C{number % 10}", alpha=0.18, linewidth=0)
    if powers:
        ax.set_xscale("log", base=2)
        places = sorted({p[0] for points in lines.values() for p in points})
        ax.set_xticks(places, [f"{place:g}" for place in places])
        ax.minorticks_off()
    ax.set(xlabel=x, ylabel=y)
    ax.set_title(title, fontsize=11)
    ax.grid(alpha=0.25)
    if len(lines) > 1:
        ax.legend(fontsize=8)


def picture(rows: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]] = (), *, title: str = "") -> Any:
    """Return one figure of an adapter: norm and effective rank by layer and kind, spectrum, and how it lies to another.

    Args:
        rows: of `anatomy.describe`; with the base's matrices the norm is shown relative to W.
        pairs: of `anatomy.beside`, for a fourth panel.
        title: above all.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    compared = any("similarity" in pair for pair in pairs)
    layers = len(by_layer(rows, "norm")[0])
    drawn = figure(18 if compared else 14, min(14, max(4.5, 1.6 + 0.3 * layers)))
    axes = drawn.subplots(1, 4 if compared else 3)
    relative = all("relative_norm" in row for row in rows)
    by_module(axes[0], rows, "relative_norm" if relative else "norm", percent=relative,
              title="how much is changed: |ΔW| in % of |W|" if relative else "how much is changed: |ΔW|")  # fmt: skip
    by_module(axes[1], rows, "effective_rank", title="directions that count: effective rank", form=".1f")
    spectrum(axes[2], rows)
    if compared:
        similarity(axes[3], pairs)
    if title:
        drawn.suptitle(title)
    return drawn


def short(names: Sequence[str]) -> list[str]:
    """Return the shortest ends of dotted names that tell them apart.

    >>> short(["self_attn.q_proj", "mlp.up_proj"]), short(["attention.output", "mlp.output"])
    (['q_proj', 'up_proj'], ['attention.output', 'mlp.output'])
    """
    ends = [name.split(".") for name in names]
    count = next((n for n in range(1, 20) if len({".".join(e[-n:]) for e in ends}) == len(ends)), 20)
    return [".".join(e[-count:]) for e in ends]


def _kind(name: str) -> str:
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return name if at is None else ".".join(parts[at + 1 :])
