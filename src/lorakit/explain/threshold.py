"""A rank read off the singular values of W, as is often suggested; what it says, and what not."""

from typing import Any

import torch

from lorakit.explain.example import W
from lorakit.explain.text import paragraph
from lorakit.rank_search.threshold import LIMITS_OF_W, suggest_rank

SHARE = 0.9


def numbers() -> dict[str, Any]:
    """Return the shares that the leading singular values of W hold, and the rank that each way of
    counting suggests.
    """
    values = torch.linalg.svdvals(torch.tensor(W, dtype=torch.float64))
    shares = {
        "sum": values.cumsum(0) / values.sum(),
        "square": values.square().cumsum(0) / values.square().sum(),
    }
    return {
        "matrix": W,
        "threshold": SHARE,
        "singular_values": [round(value, 12) for value in values.tolist()],
        **{f"share_by_{name}": found.tolist() for name, found in shares.items()},
        **{f"rank_by_{name}": suggest_rank(torch.tensor(W), SHARE, energy=name) for name in shares},
    }


def tell(told: dict[str, Any]) -> str:
    values = ", ".join(f"{value:.3f}" for value in told["singular_values"])
    return "\n".join(
        [
            paragraph(
                f"W = {[[int(v) for v in row] for row in told['matrix']]} has the singular values {values}. The first holds "
                f"{told['share_by_sum'][0]:.3f} of their sum and {told['share_by_square'][0]:.3f} of their squares "
                f"(which is what variance would mean): with a threshold of {told['threshold']:g} both suggest rank "
                f"{told['rank_by_sum']}."
            ),
            "",
            paragraph(LIMITS_OF_W),
            paragraph(
                "`lorakit rank` measures which rank is enough: it trains once at a high rank, cuts to the lower ones "
                "and looks at held-out data."
            ),
        ]
    )
