"""A threshold on singular values: the rank that it suggests, of a matrix and of a change."""

import pytest
import torch

from lorakit.errors import SpecError
from lorakit.rank_search.threshold import rank_at, suggest_rank, suggest_ranks


def test_the_published_example_needs_rank_one_either_way() -> None:
    M = torch.arange(1.0, 10.0).reshape(3, 3)
    values = torch.linalg.svdvals(M.double())
    squares = values**2
    assert values.tolist() == pytest.approx([16.848, 1.068, 0.0], abs=1e-3)
    assert float(values[0] / values.sum()) == pytest.approx(0.940, abs=1e-3)
    assert float(squares[0] / squares.sum()) == pytest.approx(0.996, abs=1e-3)
    assert suggest_rank(M, 0.9, energy="sum") == 1
    assert suggest_rank(M, 0.9) == 1


def test_sum_and_squares_are_other_shares() -> None:
    values = torch.tensor([4.0, 2.0, 2.0, 2.0])
    assert rank_at(values, 0.5, "square") == 1
    assert rank_at(values, 0.5, "sum") == 2


def test_a_threshold_on_w_alone_recommends_no_rank() -> None:
    W = {"q": torch.eye(8), "v": torch.eye(8)}
    suggestion = suggest_ranks(W, {}, 0.9, "square")
    assert suggestion["recommended_rank"] is None
    reason = "0.9 of W's squares needs 100 % of all directions"
    assert suggestion["reason"].startswith(reason)


def test_the_change_decides_where_there_is_one() -> None:
    W = {"q": torch.eye(8), "v": torch.eye(8)}
    changes = {"q": torch.tensor([1.0, 0.0]), "v": torch.tensor([1.0, 1.0])}
    suggestion = suggest_ranks(W, changes, 0.9, "square")
    assert suggestion["recommended_rank"] == 2
    assert [module["rank_of_change"] for module in suggestion["modules"]] == [1, 2]


@pytest.mark.parametrize("threshold", [0.0, 1.0, 2.0])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(SpecError, match="A share above 0 and below 1 of square or sum is needed"):
        suggest_rank(torch.eye(2), threshold)


def test_a_threshold_needs_a_matrix() -> None:
    with pytest.raises(SpecError, match=r"A matrix is needed, got a tensor of \(3,\)"):
        suggest_rank(torch.ones(3))
