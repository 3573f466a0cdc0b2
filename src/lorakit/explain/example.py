"""The 3 × 3 example: W stays, the product of two small matrices is added, and only those move.

Source: the letters W, A and B are those of Hu et al., LoRA, arXiv 2106.09685, section 4.1.
"""

from typing import TYPE_CHECKING, TypedDict

import torch

from lorakit.deltas.base import LowRank
from lorakit.explain.text import Matrix, paragraph, side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

W = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]
B = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
A = [[1.0, 2.0, 1.0], [0.0, 1.0, 1.0]]
RATE = 0.1


class ExampleNumbers(TypedDict):
    """The matrices of the example, before and after a step, and the counts of parameters."""

    W: Matrix
    B: Matrix
    A: Matrix
    change: Matrix
    adapted: Matrix
    B_after: Matrix
    A_after: Matrix
    adapted_after: Matrix
    rank: int
    full_parameters: int
    lora_parameters: int


def numbers() -> ExampleNumbers:
    """Return every matrix of the example, before and after a step with invented gradients.

    >>> numbers()["adapted"]
    [[2.0, 4.0, 4.0], [4.0, 6.0, 7.0], [8.0, 11.0, 11.0]]
    """
    base, down, up = (torch.tensor(rows, dtype=torch.float64) for rows in (W, A, B))
    change = LowRank(down, up, alpha=2.0)  # alpha / rank = 1
    # The source invents the gradients: -B for B, and -1 everywhere for A.
    moved = LowRank(down + RATE * torch.ones_like(down), up + RATE * up, alpha=2.0)
    return {
        "W": _rounded(base),
        "B": _rounded(up),
        "A": _rounded(down),
        "change": _rounded(change.matrix()),
        "adapted": _rounded(base + change.matrix()),
        "B_after": _rounded(moved.B),
        "A_after": _rounded(moved.A),
        "adapted_after": _rounded(base + moved.matrix()),
        "rank": change.rank,
        "full_parameters": base.numel(),
        "lora_parameters": down.numel() + up.numel(),
    }


def _rounded(matrix: torch.Tensor) -> list[list[float]]:
    return [[round(value, 12) for value in row] for row in matrix.tolist()]


def describe(found: ExampleNumbers) -> str:
    """Return the numbers as text."""
    before = {
        "W": found["W"],
        "B": found["B"],
        "A": found["A"],
        "ΔW = B A": found["change"],
        "W' = W + ΔW": found["adapted"],
    }
    after = {
        "B after": found["B_after"],
        "A after": found["A_after"],
        "W + B A": found["adapted_after"],
    }
    step = """
        W is not decomposed and does not move. B (3 × 2) times A (2 × 3) is a change of rank 2,
        and is added. After a step (the gradients are invented here; `lorakit explain step` has
        true ones) B and A have moved, and with them the sum:
    """
    counts = f"""
        Instead of {found["full_parameters"]} values, {found["lora_parameters"]} are trained:
        more, not fewer. The matrix is too small; `lorakit explain counts` shows from which size
        on values are saved. With W, B and A written for row vectors, X (W + A B), the two letters
        change places; the numbers do not.
    """
    parts = [side_by_side(before), "", paragraph(step), "", side_by_side(after), ""]
    return "\n".join([*parts, paragraph(counts)])


def draw(found: ExampleNumbers) -> "Figure":
    """Return a figure of W, B, A, the change and the sum."""
    from lorakit.plots import draw_change

    return draw_change(found["W"], found["A"], found["B"], title="W stays, B A is added (rank 2)")
