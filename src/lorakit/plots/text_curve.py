"""The losses of a run as lines of text, for a terminal and for a model card."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lorakit.plots.losses import LossPoint, finite_points

ROWS, MARGIN, WIDTH = 10, 8, 80  # of the curve, its numbers, and both, in characters
DOTS_DOWN, DOTS_ACROSS = 4, 2  # of a braille character
# The bits of a braille character's dots: of its left column from the top, and of its right one.
BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
BRAILLE, MARK = 0x2800, "o"


def draw_text_curve(
    trained: Sequence[LossPoint], held_out: Sequence[LossPoint] = (), *, width: int = WIDTH
) -> str:
    """Return the losses as a curve of braille dots, and an o for each held-out loss.

    Args:
        trained: losses of steps, ascending; where there are more than dots, their means are drawn.
        held_out: losses of evaluations, ascending.
        width: characters of a line at most.

    Returns:
        Lines of text; an empty text where there are less than two steps to draw.
    """
    trained, held_out = finite_points(trained), finite_points(held_out)
    if len(trained) < 2:
        return ""
    columns = max(width - MARGIN - 2, 1)
    steps = _Scale(trained[0].step, max(point.step for point in (*trained, *held_out)))
    heights = _fill_columns(trained, steps, columns * DOTS_ACROSS)
    drawn = [*heights[np.isfinite(heights)], *(point.loss for point in held_out)]
    losses = _Scale(max(drawn), min(drawn))
    cells = _draw_dots(losses.place(heights, ROWS * DOTS_DOWN), columns)
    for point in held_out:
        row = int(losses.place(point.loss, ROWS))
        column = int(steps.place(point.step, columns))
        cells[row][column] = MARK
    lines = []
    for label, row in zip(_label_rows(losses), cells, strict=True):
        lines.append(f"{label:>{MARGIN}} ┤{''.join(row)}".rstrip())
    return "\n".join([*lines, *_write_axis(steps, columns, has_held_out=bool(held_out))])


class _Scale(NamedTuple):
    """The range of an axis: the value at its first place, and the one at its last."""

    first: float
    last: float

    def place(self, value: Any, count: int) -> Any:  # noqa: ANN401  a number, or an array
        """Return the place of a value among so many, from 0; the middle if there is no range."""
        length = self.last - self.first
        share = (value - self.first) / length if length else value * 0 + 0.5
        return np.round(share * (count - 1))


def _label_rows(losses: _Scale) -> list[str]:
    """Return the numbers beside the rows: at the top, in the middle and at the bottom."""
    labels = [""] * ROWS
    length = losses.last - losses.first
    for row in (0, ROWS // 2, ROWS - 1) if length else (ROWS // 2,):
        value = losses.first + length * row / (ROWS - 1)
        labels[row] = f"{value:.3g}"
    return labels


def _fill_columns(points: Sequence[LossPoint], steps: _Scale, count: int) -> np.ndarray:
    """Return a loss for each column: the mean of its steps, or a value between its neighbours."""
    sums, counts = np.zeros(count), np.zeros(count)
    for point in points:
        column = int(steps.place(point.step, count))
        sums[column] += point.loss
        counts[column] += 1
    known = np.flatnonzero(counts)
    means = sums[known] / counts[known]
    return np.interp(np.arange(count), known, means, right=np.nan)


def _draw_dots(rows: np.ndarray, columns: int) -> list[list[str]]:
    """Return the characters of a line through these rows of dots, one for each column of dots."""
    bits = np.zeros((ROWS, columns), dtype=int)
    before = rows[0]
    for place, row in enumerate(rows):
        if np.isnan(row):
            break
        # Down or up to the dot beside the last one, so that the line has no gaps.
        beside = before + np.sign(row - before)
        top, bottom = sorted((int(row), int(beside)))
        column, side = divmod(place, DOTS_ACROSS)
        for dot in range(top, bottom + 1):
            line, height = divmod(dot, DOTS_DOWN)
            bits[line, column] |= BITS[side][height]
        before = row
    cells = []
    for line in bits:
        cells.append([chr(BRAILLE + cell) if cell else " " for cell in line])
    return cells


def _write_axis(steps: _Scale, columns: int, *, has_held_out: bool) -> list[str]:
    """Return the lines below a curve: its axis, its first and last step, and a legend."""
    first = f"{steps.first}"
    room = max(columns - len(first), 0)
    last = f"{steps.last:>{room}}"
    marks = f", {MARK} held out" if has_held_out else ""
    space = " " * MARGIN
    return [
        f"{space} └{'─' * columns}",
        f"{space}  {first}{last}",
        f"{space}  loss: ⠒ training{marks}",
    ]
