"""Attention maps without and with an adapter."""

from typing import TYPE_CHECKING

from torch import Tensor

from lorakit.analysis.attention import AttentionComparison
from lorakit.errors import SpecError
from lorakit.plots.canvas import new_figure
from lorakit.plots.matrices import draw_heatmap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_attention(
    found: AttentionComparison,
    *,
    layer: int | None = None,
    head: int | None = None,
    title: str = "",
) -> "Figure":
    """Return a figure of one head's maps before and after, and the distance of every head.

    Args:
        found: of `lorakit.analysis.attention.compare_attention`.
        layer: of the head, from 0. The head that changed most is shown without layer and head.
        head: from 0.
        title: above all.

    Raises:
        SpecError: there is no such layer or head, or one is given without the other.
        MissingExtra: matplotlib is not installed.
    """
    layer, head = _choose_head(found, layer, head)
    before, after = found.before[layer, head], found.after[layer, head]
    difference = after - before
    size = min(16.0, max(9.0, 5 + 0.5 * len(found.tokens)))
    figure = new_figure(size * 1.1, size)
    ((first, second), (third, fourth)) = figure.subplots(2, 2)
    top = float(max(before.max(), after.max()))
    far = float(difference.abs().max()) or 1.0
    name = f"layer {layer}, head {head}"
    bits = float(found.distance[layer, head])
    _draw_map(first, before, found.tokens, f"before: {name}", high=top)
    _draw_map(second, after, found.tokens, f"after: {name}", high=top)
    _draw_map(
        third,
        difference,
        found.tokens,
        f"after - before ({bits:.3f} bits apart)",
        low=-far,
        high=far,
        colours="RdBu_r",
    )
    _draw_distances(fourth, found)
    if title:
        figure.suptitle(title)
    return figure


def _choose_head(
    found: AttentionComparison, layer: int | None, head: int | None
) -> tuple[int, int]:
    if (layer is None) != (head is None):
        raise SpecError("A head needs both its layer and its number: give both, or neither.")
    if layer is None or head is None:
        return found.most_changed_head
    layers, heads = found.distance.shape
    if not (0 <= layer < layers and 0 <= head < heads):
        raise SpecError(
            f"There is no head {head} in layer {layer}: the model has {layers} layers with {heads} "
            "heads each, both counted from 0."
        )
    return layer, head


def _draw_map(
    ax: "Axes",
    values: Tensor,
    tokens: tuple[str, ...],
    title: str,
    *,
    low: float = 0.0,
    high: float,
    colours: str = "viridis",
) -> None:
    draw_heatmap(
        ax,
        values.tolist(),
        title=title,
        rows=tokens,
        columns=tokens,
        low=low,
        high=high,
        colours=colours,
        numbered=False,
    )
    ax.set(xlabel="… looks at", ylabel="this token …")
    ax.tick_params(axis="x", rotation=90)
    for label in ax.get_xticklabels():
        label.set_rotation_mode("default")


def _draw_distances(ax: "Axes", found: AttentionComparison) -> None:
    layers, heads = found.distance.shape
    draw_heatmap(
        ax,
        found.distance.tolist(),
        title=f"distance of each head, in bits (mean {found.mean_distance:.3f})",
        form=".3f",
        rows=[str(number) for number in range(layers)],
        columns=[str(number) for number in range(heads)],
    )
    ax.set(xlabel="head", ylabel="layer")
