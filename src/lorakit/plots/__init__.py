"""Pictures, on axes of the caller or as one figure. Needs matplotlib: `lorakit[plot]`.

The curve of a run as text needs none.
"""

from lorakit.plots.adapter import draw_adapter
from lorakit.plots.attention import draw_attention
from lorakit.plots.canvas import check_path, new_figure, save_figure
from lorakit.plots.graphs import draw_graph, draw_layers
from lorakit.plots.images import draw_compressed
from lorakit.plots.lines import draw_curves, draw_spectrum
from lorakit.plots.losses import LossPoint, draw_losses
from lorakit.plots.matrices import (
    draw_by_module,
    draw_change,
    draw_heatmap,
    draw_matrices,
    draw_similarity,
    shorten_names,
)
from lorakit.plots.results import draw_methods
from lorakit.plots.sizes import draw_reached, draw_sizes
from lorakit.plots.text_curve import draw_text_curve

__all__ = [
    "LossPoint",
    "check_path",
    "draw_adapter",
    "draw_attention",
    "draw_by_module",
    "draw_change",
    "draw_compressed",
    "draw_curves",
    "draw_graph",
    "draw_heatmap",
    "draw_layers",
    "draw_losses",
    "draw_matrices",
    "draw_methods",
    "draw_reached",
    "draw_similarity",
    "draw_sizes",
    "draw_spectrum",
    "draw_text_curve",
    "new_figure",
    "save_figure",
    "shorten_names",
]
