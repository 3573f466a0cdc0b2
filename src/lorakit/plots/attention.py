"""Where a model looks, without and with an adapter."""

from typing import Any

from lorakit.analysis.attention import AttentionComparison
from lorakit.errors import SpecError
from lorakit.plots.canvas import new_figure
from lorakit.plots.matrices import draw_heatmap


def draw_attention(
    found: AttentionComparison,
    *,
    layer: int | None = None,
    head: int | None = None,
    title: str = "",
) -> Any:
    """Return one figure: the maps of a head before, after and their difference, and how far every
    head has moved.

    Args:
        found: of `lorakit.analysis.attention.compare_attention`.
        layer: whose head is shown, from 0; with `head`. The head that moved most where neither is
            given.
        head: from 0.
        title: above all.

    Raises:
        SpecError: there is no such layer or head, or one is given without the other.
        MissingExtra: matplotlib is not installed.
    """
    layers, heads = found.distance.shape
    if (layer is None) != (head is None):
        raise SpecError("A head is named by its layer and its head: give both, or neither.")
    at = found.most_changed_head if layer is None or head is None else (layer, head)
    if not (0 <= at[0] < layers and 0 <= at[1] < heads):
        raise SpecError(
            f"There is no head {at[1]} in layer {at[0]}: {layers} layers with {heads} heads each, both from 0."
        )
    before, after = found.before[at], found.after[at]
    gap = after - before
    size = min(16.0, max(9.0, 5 + 0.5 * len(found.tokens)))
    drawn = new_figure(size * 1.1, size)
    ((first, second), (third, fourth)) = drawn.subplots(2, 2)
    top, far = float(max(before.max(), after.max())), float(gap.abs().max()) or 1.0
    named, apart = f"layer {at[0]}, head {at[1]}", float(found.distance[at])
    _map(first, before, found.tokens, title=f"before: {named}", high=top)
    _map(second, after, found.tokens, title=f"after: {named}", high=top)
    _map(
        third,
        gap,
        found.tokens,
        title=f"after - before ({apart:.3f} bits apart)",
        low=-far,
        high=far,
        colours="RdBu_r",
    )
    draw_heatmap(
        fourth,
        found.distance.tolist(),
        title=f"how far each head moved, in bits (mean {found.mean_distance:.3f})",
        form=".3f",
        rows=[str(i) for i in range(layers)],
        columns=[str(i) for i in range(heads)],
    )
    fourth.set(xlabel="head", ylabel="layer")
    if title:
        drawn.suptitle(title)
    return drawn


def _map(ax: Any, values: Any, tokens: tuple[str, ...], **more: Any) -> None:
    draw_heatmap(ax, values.tolist(), rows=tokens, columns=tokens, numbered=False, **more)
    ax.set(xlabel="… looks at", ylabel="this token …")
    ax.tick_params(axis="x", rotation=90)
    for label in ax.get_xticklabels():
        label.set_rotation_mode("default")
