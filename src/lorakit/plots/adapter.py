"""An adapter in one figure."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.analysis.report import grid_by_layer
from lorakit.plots.canvas import new_figure
from lorakit.plots.lines import draw_spectrum
from lorakit.plots.matrices import draw_by_module, draw_similarity


def draw_adapter(
    rows: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]] = (), *, title: str = ""
) -> Any:
    """Return one figure of an adapter: norm and effective rank by layer and kind, spectrum, and how
    it lies to another.

    Args:
        rows: of `anatomy.describe`; with the base's matrices the norm is shown relative to W.
        pairs: of `anatomy.beside`, for a fourth panel.
        title: above all.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    compared = any("similarity" in pair for pair in pairs)
    layers = len(grid_by_layer(rows, "norm")[0])
    drawn = new_figure(18 if compared else 14, min(14, max(4.5, 1.6 + 0.3 * layers)))
    axes = drawn.subplots(1, 4 if compared else 3)
    relative = all("relative_norm" in row for row in rows)
    draw_by_module(
        axes[0],
        rows,
        "relative_norm" if relative else "norm",
        percent=relative,
        title="how much is changed: |ΔW| in % of |W|" if relative else "how much is changed: |ΔW|",
    )
    draw_by_module(
        axes[1], rows, "effective_rank", title="directions that count: effective rank", form=".1f"
    )
    draw_spectrum(axes[2], rows)
    if compared:
        draw_similarity(axes[3], pairs)
    if title:
        drawn.suptitle(title)
    return drawn
