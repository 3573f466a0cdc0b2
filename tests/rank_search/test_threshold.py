"""A threshold and rules of thumb: each input changes the rank that they suggest."""

import pytest
import torch

from lorakit.errors import SpecError
from lorakit.rank_search.advice import advise
from lorakit.rank_search.threshold import rank_at, suggest_rank, suggest_ranks

SHAPES = [(64, 64), (32, 64)] * 5


def test_the_published_example_needs_rank_one_either_way() -> None:
    M = torch.arange(1.0, 10.0).reshape(3, 3)
    values = torch.linalg.svdvals(M.double())
    assert values.tolist() == pytest.approx([16.848, 1.068, 0.0], abs=1e-3)
    assert float(values[0] / values.sum()) == pytest.approx(0.940, abs=1e-3)
    assert float(values[0] ** 2 / (values**2).sum()) == pytest.approx(0.996, abs=1e-3)
    assert suggest_rank(M, 0.9, energy="sum") == suggest_rank(M, 0.9) == 1


def test_sum_and_squares_are_other_shares() -> None:
    values = torch.tensor([4.0, 2.0, 2.0, 2.0])
    assert rank_at(values, 0.5, "square") == 1 and rank_at(values, 0.5, "sum") == 2


def test_the_change_decides_where_there_is_one() -> None:
    W = {"q": torch.eye(8), "v": torch.eye(8)}
    suggestion = suggest_ranks(W, {}, 0.9, "square")
    assert suggestion["recommended_rank"] is None and suggestion["reason"].startswith(
        "0.9 of W's squares needs 100 % of all directions"
    )
    suggestion = suggest_ranks(
        W, {"q": torch.tensor([1.0, 0.0]), "v": torch.tensor([1.0, 1.0])}, 0.9, "square"
    )
    assert suggestion["recommended_rank"] == 2 and [
        m["rank_of_change"] for m in suggestion["modules"]
    ] == [
        1,
        2,
    ]


@pytest.mark.parametrize("threshold", [0.0, 1.0, 2.0])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(SpecError, match="A share above 0 and below 1 of square or sum is needed"):
        suggest_rank(torch.eye(2), threshold)
    with pytest.raises(SpecError, match=r"A matrix is needed, got a tensor of \(3,\)"):
        suggest_rank(torch.ones(3))


ADVICE = {
    "few rows": (16, "16 up to 10,000 rows", {"rows": 10_000}),
    "more rows": (32, "32 up to 100,000", {"rows": 10_001}),
    "many rows": (64, "64 above", {"rows": 200_000, "shapes": [(512, 512)]}),
    "classes": (8, "one label a row holds little information", {"task": "classify"}),
    "a narrow matrix": (4, "The narrowest adapted matrix has 4 directions", {"shapes": [(4, 64)]}),
    "little memory": (4, "hold rank 5 at most", {"memory": 16 * 1120 * 5}),
    "no memory": (1, "adapt fewer layers", {"memory": 100}),
    "much to hold": (16, "less than a bit for each, so a higher rank may pay", {"tokens": 10**9}),
    "little to hold": (16, "data, not rank, is the limit", {"tokens": 1000}),
}


@pytest.mark.parametrize("case", ADVICE)
def test_each_thing_changes_the_advice(case: str) -> None:
    rank, says, more = ADVICE[case]
    advice = advise(
        **{"task": "causal-lm", "rows": 5000, "shapes": SHAPES, "memory": 10**9, **more}
    )
    assert advice.rank == rank and any(says in reason for reason in advice.reasons), advice
    assert "It is a start, not an answer" in advice.reasons[-1]
