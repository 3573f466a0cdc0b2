"""The curve of a run, as text and as a picture."""

import math
from pathlib import Path

import pytest

from lorakit.plots import LossPoint, draw_losses, draw_text_curve, save_figure

FALLING = [LossPoint(step, 4 / step) for step in range(1, 41)]
HELD_OUT = [LossPoint(step, 4 / step + 0.5) for step in (10, 20, 30, 40)]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_its_lines_fit_and_fill_the_width(width: int) -> None:
    lines = draw_text_curve(FALLING, HELD_OUT, width=width).splitlines()
    assert max(map(len, lines)) == width


def test_it_falls_from_the_upper_left_to_the_lower_right() -> None:
    rows = draw_text_curve(FALLING).splitlines()[:10]
    assert rows[0].strip().startswith("4 ┤⢱") and rows[-1].strip().startswith("0.1 ┤")
    columns = [row.index("┤") + 1 for row in rows]
    starts = [
        len(row) - len(row[column:].lstrip()) for row, column in zip(rows, columns, strict=True)
    ]
    assert starts == sorted(starts) and len(rows[-1]) == 80


def test_each_held_out_loss_is_a_mark() -> None:
    text = draw_text_curve(FALLING, HELD_OUT)
    curve, legend = "\n".join(text.splitlines()[:10]), text.splitlines()[-1]
    assert curve.count("o") == len(HELD_OUT) and "o held out" in legend
    assert "held out" not in draw_text_curve(FALLING)


@pytest.mark.parametrize("losses", [[], [1.0], [math.nan, math.inf, 1.0]])
def test_less_than_two_losses_are_no_curve(losses: list[float]) -> None:
    assert draw_text_curve([LossPoint(i, loss) for i, loss in enumerate(losses)]) == ""


def test_many_steps_are_drawn_by_their_means() -> None:
    noisy = [LossPoint(step, 1 + (-1) ** step) for step in range(1, 4001)]
    text = draw_text_curve(noisy, [LossPoint(4000, 2.0), LossPoint(4000, 0.0)])
    rows = [row.partition("┤")[2].strip(" o") for row in text.splitlines()[:10]]
    assert [bool(row) for row in rows] == [False] * 4 + [True] * 2 + [False] * 4


def test_a_constant_loss_and_losses_that_are_no_numbers_are_drawn() -> None:
    text = draw_text_curve([LossPoint(1, 2.0), LossPoint(2, math.nan), LossPoint(3, 2.0)])
    assert text.count(" 2 ┤") == 1 and text.count("┤") == 10


@pytest.mark.slow
def test_a_picture_has_both_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = draw_losses(FALLING, HELD_OUT, title="tiny")
    ax = figure.axes[0]
    assert [line.get_label() for line in ax.lines[1:]] == ["training loss", "held-out loss"]
    assert list(ax.lines[2].get_ydata()) == [point.loss for point in HELD_OUT]
    assert save_figure(figure, tmp_path / "curve.png").stat().st_size > 1000
