"""Figures of matrices, graphs and sizes show the numbers they were given, and say what they leave
out.
"""

import math

import pytest
import torch

pytest.importorskip("matplotlib")

from lorakit import plots

from ..laws.table import randn


@pytest.mark.slow
def test_a_change_is_drawn_with_its_sum():
    W, A, B = randn(4, 5), randn(2, 5, seed=1).requires_grad_(), randn(4, 2, seed=2)
    drawn = plots.draw_change(W, A, B, scale=0.5)
    shown = {ax.get_title(): torch.tensor(ax.get_images()[0].get_array()) for ax in drawn.axes}
    assert list(shown) == ["W (frozen)", "0.5 B", "A", "W' = W + ΔW", "ΔW = 0.5 B A"]
    added = 0.5 * B @ A.detach()
    assert torch.allclose(shown["ΔW = 0.5 B A"], added) and torch.allclose(
        shown["W' = W + ΔW"], W + added
    )
    scales = [ax.get_images()[0].get_clim() for ax in drawn.axes]
    assert scales[0] == scales[3] != scales[4]
    assert drawn._repr_png_()[:4] == b"\x89PNG"  # a notebook shows it


def test_a_small_graph_carries_its_weights():
    drawn = plots.draw_graph([[2.0, -3.0]], [[1.0, 0.001]], [[0.5]])
    left, right = drawn.axes
    assert {"2", "-3", "I1", "I2", "Q1"} == {text.get_text() for text in left.texts}
    assert {"1", "0", "0.50", "I1", "I2", "R1", "Q1"} == {text.get_text() for text in right.texts}
    halves = plots.draw_graph([[2.0, -4.0]], [[1.0, 2.0]], [[4.0]], normalised=True).axes
    assert {"0.50", "-1"} < {text.get_text() for text in halves[0].texts}
    assert {"0.25", "0.50", "1"} < {text.get_text() for text in halves[1].texts}


def test_of_a_large_layer_the_strongest_edges_are_drawn_and_the_rest_is_counted():
    M = torch.zeros(40, 50)
    M[3, 7], M[11, 13], M[20, 7] = -5.0, 4.0, 0.1
    left, right = plots.draw_graph(M, randn(2, 50), randn(40, 2), strongest=2).axes
    assert (
        left.get_title() == "ΔW: 50 × 40 = 2,000 edges\nthe strongest 2 are drawn, 1,998 left out"
    )
    assert {"I8", "I14", "Q4", "Q12"} < {text.get_text() for text in left.texts} and len(
        left.lines
    ) == 2
    assert (
        right.get_title().endswith("the strongest 4 are drawn, 176 left out")
        and len(right.lines) == 4
    )


def test_sizes_go_with_the_square_and_with_the_width():
    left, right = plots.draw_sizes(ranks=(8,)).axes

    def slope(line):
        (x0, *_, x1), (y0, *_, y1) = line.get_xdata(), line.get_ydata()
        return math.log(y1 / y0) / math.log(x1 / x0)

    whole, low, _ = left.lines
    assert slope(whole) == pytest.approx(2) and slope(low) == pytest.approx(1)
    assert low.get_ydata()[0] == 2 * 8 * low.get_xdata()[0]
    assert any("break-even: r = 512" in text.get_text() for text in right.texts)
