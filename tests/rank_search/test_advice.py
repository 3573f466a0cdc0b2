"""Rules of thumb: each input changes the rank that they advise."""

from typing import Any

import pytest

from lorakit.rank_search.advice import advise

SHAPES = [(64, 64), (32, 64)] * 5
REQUEST: dict[str, Any] = {
    "task": "causal-lm",
    "rows": 5000,
    "shapes": SHAPES,
    "memory": 10**9,
}
ADVICE: dict[str, tuple[int, str, dict[str, Any]]] = {
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
def test_each_input_changes_the_advice(case: str) -> None:
    rank, words, change = ADVICE[case]
    advice = advise(**{**REQUEST, **change})
    assert advice.rank == rank, advice
    assert any(words in reason for reason in advice.reasons), advice
    assert "It is a start, not an answer" in advice.reasons[-1]
