"""Pictures, drawn on axes that the caller gives or as one figure. Needs matplotlib:
`lorakit[plot]`.
"""

from lorakit.plots.attention import attention
from lorakit.plots.canvas import check, figure, save
from lorakit.plots.graphs import graph, layers
from lorakit.plots.images import compressed
from lorakit.plots.lines import curves, spectrum
from lorakit.plots.matrices import by_module, change, heat, in_a_row, short, similarity
from lorakit.plots.picture import picture
from lorakit.plots.results import methods
from lorakit.plots.sizes import reached, sizes

__all__ = [
    "attention",
    "by_module",
    "change",
    "check",
    "compressed",
    "curves",
    "figure",
    "graph",
    "heat",
    "in_a_row",
    "layers",
    "methods",
    "picture",
    "reached",
    "save",
    "short",
    "similarity",
    "sizes",
    "spectrum",
]
