"""The losses of a run as a picture."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lorakit.plots.canvas import FULL, LORA, hide_frame, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHED = 50  # parts of a run, each with one mean in the smooth line


class LossPoint(NamedTuple):
    """The loss of a step, or of an evaluation after it."""

    step: int
    loss: float


def finite_points(points: Sequence[LossPoint]) -> list[LossPoint]:
    """Return the points whose loss is a number."""
    return [point for point in points if math.isfinite(point.loss)]


def draw_losses(
    trained: Sequence[LossPoint], held_out: Sequence[LossPoint] = (), *, title: str = ""
) -> "Figure":
    """Draw the loss of each step, its mean over parts of the run, and the held-out losses.

    Args:
        trained: losses of steps, ascending.
        held_out: losses of evaluations, ascending.
        title: above the curve.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = new_figure(7, 4.5)
    ax = figure.subplots()
    steps, losses = [point.step for point in trained], [point.loss for point in trained]
    ax.plot(steps, losses, color=LORA, linewidth=0.8, alpha=0.4)
    means = _smooth(finite_points(trained))
    ax.plot(*zip(*means, strict=True), color=LORA, linewidth=2, label="training loss")
    if held_out:
        places = [point.step for point in held_out]
        values = [point.loss for point in held_out]
        ax.plot(places, values, color=FULL, linewidth=2, marker="o", label="held-out loss")
    ax.set(xlabel="step", ylabel="loss")
    ax.set_title(title, fontsize=11)
    ax.legend(fontsize=8)
    hide_frame(ax)
    return figure


def _smooth(points: Sequence[LossPoint]) -> list[tuple[float, float]]:
    """Return the mean of each part of a run: its step and its loss."""
    size = max(1, math.ceil(len(points) / SMOOTHED))
    means = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        step = sum(point.step for point in part) / len(part)
        means.append((step, sum(point.loss for point in part) / len(part)))
    return means
