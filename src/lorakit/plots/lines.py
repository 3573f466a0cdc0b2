"""Lines: spectra, and quality with its band."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.plots.matrices import shorten_names


def draw_spectrum(
    ax: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str = "singular values, by the largest of each module",
) -> None:
    """Draw each module's singular values as a thin line, and the mean of each kind of module as a
    thick one.
    """
    lines: dict[str, list[list[float]]] = {}
    for row in rows:
        values = row["singular_values"]
        if row["norm"] and not isinstance(values[0], list):
            lines.setdefault(_kind(row["name"]), []).append([value / values[0] for value in values])
    names = dict(zip(lines, shorten_names(list(lines)), strict=True))
    for number, (kind, many_of) in enumerate(lines.items()):
        colour = f"C{number % 10}"
        for one in many_of:
            ax.plot(range(1, len(one) + 1), one, color=colour, linewidth=0.6, alpha=0.35)
        width = min(map(len, many_of))
        mean = [sum(one[i] for one in many_of) / len(many_of) for i in range(width)]
        ax.plot(
            range(1, width + 1),
            mean,
            color=colour,
            linewidth=2.2,
            marker="o",
            markersize=3,
            label=names[kind],
        )
    ax.set(xlabel="direction", ylim=(0, 1.05))
    ax.set_title(title, fontsize=11)
    if lines:
        ax.legend(fontsize=8, loc="upper right")
        longest = max(len(one) for many_of in lines.values() for one in many_of)
        ax.set_xticks(range(1, longest + 1, max(1, longest // 8)))


def draw_curves(
    ax: Any,
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]],
    *,
    title: str,
    x: str,
    y: str,
    powers: bool = False,
) -> None:
    """Draw lines with a band each.

    Args:
        ax: matplotlib axes.
        lines: by label: (x, y, low, high), ascending in x; a band is drawn where low and high
            differ.
        title: above it.
        x: label below.
        y: label on the left.
        powers: whether x goes in powers of two, each value of it with its number.
    """
    for number, (label, points) in enumerate(lines.items()):
        at, middle, low, high = ([p[i] for p in points] for i in range(4))
        ax.plot(
            at, middle, color=f"C{number % 10}", linewidth=2, marker="o", markersize=4, label=label
        )
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


def _kind(name: str) -> str:
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return name if at is None else ".".join(parts[at + 1 :])
