"""An adapter in one figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorakit.analysis.report import ModuleReport, PairReport, grid_by_layer
from lorakit.plots.canvas import new_figure
from lorakit.plots.lines import draw_spectrum
from lorakit.plots.matrices import draw_by_module, draw_similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_adapter(
    modules: Sequence[ModuleReport], pairs: Sequence[PairReport] = (), *, title: str = ""
) -> "Figure":
    """Return a figure of an adapter: norm and effective rank by module, spectrum, and overlap.

    Args:
        modules: of `analysis.report.describe_modules`; with the base's matrices the norm is shown
            relative to W.
        pairs: of `analysis.report.compare_adapters`, for a fourth panel.
        title: above all.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    compared = any("similarity" in pair for pair in pairs)
    layers = len(grid_by_layer(modules, "norm").layers)
    height = min(14, max(4.5, 1.6 + 0.3 * layers))
    figure = new_figure(18 if compared else 14, height)
    axes = figure.subplots(1, 4 if compared else 3)
    _draw_norms(axes[0], modules)
    draw_by_module(
        axes[1],
        modules,
        "effective_rank",
        title="number of directions: effective rank",
        form=".1f",
    )
    draw_spectrum(axes[2], modules)
    if compared:
        draw_similarity(axes[3], pairs)
    if title:
        figure.suptitle(title)
    return figure


def _draw_norms(ax: "Axes", modules: Sequence[ModuleReport]) -> None:
    if all("relative_norm" in module for module in modules):
        title = "size of the change: |ΔW| in % of |W|"
        draw_by_module(ax, modules, "relative_norm", title=title, percent=True)
    else:
        draw_by_module(ax, modules, "norm", title="size of the change: |ΔW|")
