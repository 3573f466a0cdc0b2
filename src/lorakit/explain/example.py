"""The 3 × 3 example: W is left as it is, the product of two small matrices is added, and only those
two move.
"""

from typing import Any

import torch

from lorakit.deltas.base import LowRank
from lorakit.explain.text import beside, paragraph

W = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]
B = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
A = [[1.0, 2.0, 1.0], [0.0, 1.0, 1.0]]
RATE = 0.1


def numbers() -> dict[str, Any]:
    """Return every matrix of the example, before and after a step along gradients that are made up.

    >>> numbers()["adapted"]
    [[2.0, 4.0, 4.0], [4.0, 6.0, 7.0], [8.0, 11.0, 11.0]]
    """
    base, down, up = (torch.tensor(rows, dtype=torch.float64) for rows in (W, A, B))
    change = LowRank(down, up, alpha=2.0)  # alpha / rank = 1
    # The gradients of the source are made up: -B for B, and -1 everywhere for A.
    moved = LowRank(down + RATE * torch.ones_like(down), up + RATE * up, alpha=2.0)
    full, trained = base.numel(), down.numel() + up.numel()
    told = {
        "W": base,
        "B": up,
        "A": down,
        "change": change.matrix(),
        "adapted": base + change.matrix(),
        "B_after": moved.B,
        "A_after": moved.A,
        "adapted_after": base + moved.matrix(),
    }
    rounded = {name: _rows(matrix) for name, matrix in told.items()}
    return {**rounded, "rank": change.rank, "full_parameters": full, "lora_parameters": trained}


def _rows(matrix: torch.Tensor) -> list[list[float]]:
    return [[round(value, 12) for value in row] for row in matrix.tolist()]


def tell(told: dict[str, Any]) -> str:
    first = beside(
        {
            "W": told["W"],
            "B": told["B"],
            "A": told["A"],
            "ΔW = B A": told["change"],
            "W' = W + ΔW": told["adapted"],
        }
    )
    after = beside(
        {"B after": told["B_after"], "A after": told["A_after"], "W + B A": told["adapted_after"]}
    )
    return "\n".join(
        [
            first,
            "",
            paragraph(
                "W is not decomposed and does not move. B (3 × 2) times A (2 × 3) is a change of rank 2, and is added. "
                "After a step (the gradients are made up here; `lorakit explain step` has true ones) B and A have moved, "
                "and with them the sum:"
            ),
            "",
            after,
            "",
            paragraph(
                f"Instead of {told['full_parameters']} values, {told['lora_parameters']} are trained: more, not fewer. "
                "The matrix is too small for it to pay; `lorakit explain counts` says from where on it does. With W, B and A "
                "written for row vectors, X (W + A B), the two letters change places; the numbers do not."
            ),
        ]
    )


def draw(told: dict[str, Any]) -> Any:
    from lorakit.plots import draw_change

    return draw_change(told["W"], told["A"], told["B"], title="W stays, B A is added (rank 2)")
