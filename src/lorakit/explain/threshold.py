"""A rank from the singular values of W, as it is often suggested, and why it says little.

Source: the letter W is that of Hu et al., LoRA, arXiv 2106.09685, section 4.1.
"""

from typing import TypedDict

import torch

from lorakit.explain.example import W
from lorakit.explain.text import Matrix, paragraph
from lorakit.rank_search.threshold import LIMITS_OF_W, suggest_rank

SHARE = 0.9


class ThresholdNumbers(TypedDict):
    """The singular values of W, their cumulative shares, and the ranks these suggest."""

    matrix: Matrix
    threshold: float
    singular_values: list[float]
    share_by_sum: list[float]
    share_by_square: list[float]
    rank_by_sum: int
    rank_by_square: int


def numbers() -> ThresholdNumbers:
    """Return the shares of the leading singular values of W, and the rank by each way to count."""
    matrix = torch.tensor(W, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    squares = values.square()
    single = torch.tensor(W)
    return {
        "matrix": W,
        "threshold": SHARE,
        "singular_values": [round(value, 12) for value in values.tolist()],
        "share_by_sum": (values.cumsum(0) / values.sum()).tolist(),
        "share_by_square": (squares.cumsum(0) / squares.sum()).tolist(),
        "rank_by_sum": suggest_rank(single, SHARE, energy="sum"),
        "rank_by_square": suggest_rank(single, SHARE, energy="square"),
    }


def describe(found: ThresholdNumbers) -> str:
    """Return the numbers as text."""
    values = ", ".join(f"{value:.3f}" for value in found["singular_values"])
    rows = [[int(value) for value in row] for row in found["matrix"]]
    shares = f"""
        W = {rows} has the singular values {values}. The first holds
        {found["share_by_sum"][0]:.3f} of their sum and {found["share_by_square"][0]:.3f} of their
        squares (the share of the variance): with a threshold of {found["threshold"]:g} both
        suggest rank {found["rank_by_sum"]}.
    """
    search = """
        `lorakit rank` measures which rank is enough: it trains once at a high rank, cuts to the
        lower ones, and evaluates each on held-out data.
    """
    return "\n".join([paragraph(shares), "", paragraph(LIMITS_OF_W), paragraph(search)])
