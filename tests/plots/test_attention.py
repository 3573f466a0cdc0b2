"""The picture of attention holds the maps it was given, of the head that was asked for."""

import pytest
import torch

pytest.importorskip("matplotlib")

from lorakit import LorakitError, plots
from lorakit.analysis.attention import AttentionComparison


def compared() -> AttentionComparison:
    draw = torch.Generator().manual_seed(0)
    before, after = (torch.rand(2, 3, 4, 4, generator=draw).double().softmax(-1) for _ in range(2))
    return AttentionComparison(
        ("a", "b", "c", "d"),
        before,
        after,
        torch.tensor([[0.1, 0.2, 0.0], [0.4, 0.3, 0.1]]).double(),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "shown"), [({}, (1, 0)), ({"layer": 0, "head": 2}, (0, 2))])
def test_the_maps_are_shown(asked: dict[str, int], shown: tuple[int, int]) -> None:
    found = compared()
    panels = [ax for ax in plots.draw_attention(found, title="one", **asked).axes if ax.get_title()]
    wanted = [
        found.before[shown],
        found.after[shown],
        found.after[shown] - found.before[shown],
        found.distance,
    ]
    for ax, values in zip(panels, wanted, strict=True):
        assert ax.get_images()[0].get_array().tolist() == values.tolist()
    assert [label.get_text() for label in panels[0].get_xticklabels()] == list(found.tokens)
    assert f"layer {shown[0]}, head {shown[1]}" in panels[0].get_title()
    low, high = panels[2].get_images()[0].get_clim()
    assert low == -high  # nothing moved is the middle of the colours


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"layer": 2, "head": 0},
            "There is no head 0 in layer 2: the model has 2 layers with 3 heads each, both "
            "counted from 0.",
        ),
        ({"layer": 1}, "A head needs both its layer and its number: give both, or neither."),
    ],
)
def test_a_head_that_is_not_there_is_refused(asked: dict[str, int], says: str) -> None:
    with pytest.raises(LorakitError) as caught:
        plots.draw_attention(compared(), **asked)
    assert str(caught.value) == says
