"""Pictures, drawn on axes that the caller gives or as one figure. Needs matplotlib: `lorakit[plot]`."""

from lorakit.plots.attention import attention
from lorakit.plots.canvas import check, figure, save
from lorakit.plots.lines import curves, spectrum
from lorakit.plots.matrices import by_module, heat, short, similarity
from lorakit.plots.picture import picture
from lorakit.plots.results import methods

__all__ = [
    "attention",
    "by_module",
    "check",
    "curves",
    "figure",
    "heat",
    "methods",
    "picture",
    "save",
    "short",
    "similarity",
    "spectrum",
]
