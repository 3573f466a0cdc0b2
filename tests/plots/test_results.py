"""The picture of methods holds the numbers of each, and their costs."""

import pytest
import torch

pytest.importorskip("matplotlib")

from lorakit import LorakitError, plots

ROWS = [
    {
        "method": "full",
        "accuracy": 0.9,
        "low": 0.85,
        "high": 0.93,
        "seconds": 30.0,
        "memory_bytes": 400 * 2**20,
        "parameters": 2e7,
    },
    {
        "method": "LoRA",
        "accuracy": 0.88,
        "low": 0.83,
        "high": 0.91,
        "seconds": 15.0,
        "memory_bytes": 80 * 2**20,
        "parameters": 2e5,
    },
    {
        "method": "head",
        "accuracy": 0.7,
        "low": 0.65,
        "high": 0.75,
        "seconds": 9.0,
        "parameters": 1000,
    },
]


@pytest.mark.slow
def test_quality_and_costs_are_shown() -> None:
    drawn = plots.draw_methods(ROWS, reference="full", title="a task")
    quality, *costs = drawn.axes
    assert [label.get_text() for label in quality.get_yticklabels()] == ["full", "LoRA", "head"]
    spans = [
        sorted(line.get_xdata()) for line in quality.get_lines() if line.get_linewidth() == 2.5
    ]
    assert spans == [[row["low"], row["high"]] for row in ROWS]
    assert [ax.get_title() for ax in costs] == [
        "CPU seconds",
        "memory beside\nthe weights, MiB",
        "parameters trained\n(log scale)",
    ]
    assert [bar.get_width() for bar in costs[0].patches] == [30, 15, 9]
    assert [bar.get_width() for bar in costs[1].patches] == [400, 80, 0]
    assert quality.get_ylim()[0] > quality.get_ylim()[1]  # the first is on top


def test_a_cost_of_zero_is_a_number_and_an_absent_one_is_not() -> None:
    rows = [ROWS[0], {**ROWS[1], "seconds": torch.tensor(0.0)}, ROWS[2]]
    seconds, memory = plots.draw_methods(rows).axes[1:3]
    assert "0" in [text.get_text() for text in seconds.texts]
    assert "0" not in [text.get_text() for text in memory.texts]


def test_methods_that_reach_the_best_are_blue() -> None:
    quality = plots.draw_methods(ROWS).axes[0]
    colours = [line.get_color() for line in quality.get_lines() if line.get_linewidth() == 2.5]
    assert colours[0] == colours[1] != colours[2]


@pytest.mark.parametrize(
    ("rows", "more", "says"),
    [
        ([], {}, "no rows"),
        ([{"method": "a"}], {}, "a: no accuracy"),
        (ROWS, {"reference": "b"}, "no method 'b'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(rows: list, more: dict, says: str) -> None:
    with pytest.raises(LorakitError) as caught:
        plots.draw_methods(rows, **more)
    assert str(caught.value) == f"There is nothing to draw: {says}."
