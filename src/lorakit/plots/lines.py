"""Lines: spectra, and quality with its band."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from lorakit.analysis.report import ModuleReport, split_name
from lorakit.plots.matrices import shorten_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = 10  # of matplotlib's cycle


class Point(NamedTuple):
    """One point of a curve, with its interval."""

    x: float
    y: float
    low: float
    high: float


def draw_spectrum(
    ax: "Axes",
    modules: Sequence[ModuleReport],
    *,
    title: str = "singular values, by the largest of each module",
) -> None:
    """Draw each module's singular values as a thin line, and the mean of a kind as a thick one.

    Args:
        ax: matplotlib axes.
        modules: of `analysis.report.describe_modules`; stacks and zero changes are left out.
        title: above it.
    """
    spectra = _group_spectra(modules)
    names = shorten_names(list(spectra))
    for index, lines in enumerate(spectra.values()):
        colour = f"C{index % COLOURS}"
        for line in lines:
            ax.plot(range(1, len(line) + 1), line, color=colour, linewidth=0.6, alpha=0.35)
        mean = [sum(column) / len(lines) for column in zip(*lines, strict=False)]
        ax.plot(
            range(1, len(mean) + 1),
            mean,
            color=colour,
            linewidth=2.2,
            marker="o",
            markersize=3,
            label=names[index],
        )
    ax.set(xlabel="direction", ylim=(0, 1.05))
    ax.set_title(title, fontsize=11)
    if spectra:
        ax.legend(fontsize=8, loc="upper right")
        longest = max(max(len(line) for line in lines) for lines in spectra.values())
        ax.set_xticks(range(1, longest + 1, max(1, longest // 8)))


def _group_spectra(modules: Sequence[ModuleReport]) -> dict[str, list[list[float]]]:
    spectra: dict[str, list[list[float]]] = {}
    for module in modules:
        values = module["singular_values"]
        is_stack = isinstance(values[0], list)
        if module["norm"] and not is_stack:
            plain = cast(list[float], values)
            relative = [value / plain[0] for value in plain]
            _, kind = split_name(module["name"])
            spectra.setdefault(kind, []).append(relative)
    return spectra


def draw_curves(
    ax: "Axes",
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]],
    *,
    title: str,
    x: str,
    y: str,
    powers: bool = False,
) -> None:
    """Draw curves with a band each.

    Args:
        ax: matplotlib axes.
        curves: by label: (x, y, low, high), ascending in x; a band is drawn if low and high differ.
        title: above it.
        x: label below.
        y: label on the left.
        powers: x in powers of two, each value of it with its number.
    """
    places: set[float] = set()
    for index, (label, values) in enumerate(curves.items()):
        points = [Point(*value) for value in values]
        _draw_curve(ax, points, label, f"C{index % COLOURS}")
        places |= {point.x for point in points}
    if powers:
        ticks = sorted(places)
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    ax.set(xlabel=x, ylabel=y)
    ax.set_title(title, fontsize=11)
    ax.grid(alpha=0.25)
    if len(curves) > 1:
        ax.legend(fontsize=8)


def _draw_curve(ax: "Axes", points: Sequence[Point], label: str, colour: str) -> None:
    places = [point.x for point in points]
    middle = [point.y for point in points]
    ax.plot(places, middle, color=colour, linewidth=2, marker="o", markersize=4, label=label)
    if any(point.low != point.high for point in points):
        low = [point.low for point in points]
        high = [point.high for point in points]
        ax.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
