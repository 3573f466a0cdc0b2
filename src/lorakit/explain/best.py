"""The best approximation of a given rank, and its error before it is computed."""

from typing import TYPE_CHECKING, TypedDict

import torch

from lorakit.analysis.spectra import cumulative_energy
from lorakit.explain.text import Matrix, paragraph, side_by_side
from lorakit.linalg import factorize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

M = [[2.0, 3.0, 1.0], [5.0, 7.0, 4.0], [6.0, 8.0, 5.0]]


class RankRow(TypedDict):
    """The error of the nearest matrix of a rank."""

    rank: int
    error: float
    tail: float
    relative_error: float
    energy: float


class BestNumbers(TypedDict):
    """A matrix, its singular values, and the error of each rank."""

    matrix: Matrix
    singular_values: list[float]
    ranks: list[RankRow]


def nearest(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the matrix of this rank that is nearest to a given one.

    Args:
        matrix: (out, in), any floating dtype.
        rank: from 1 to min(out, in).

    Returns:
        (out, in), float64.

    >>> nearest(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), 1).abs().round(decimals=6).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    A, B = factorize(matrix, rank)
    return B @ A


def numbers() -> BestNumbers:
    """Return the error of each rank, and the size of the singular values left out."""
    matrix = torch.tensor(M, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    energy = cumulative_energy(values)
    ranks: list[RankRow] = []
    for rank in (1, 2, 3):
        error = float((nearest(matrix, rank) - matrix).norm())
        row: RankRow = {
            "rank": rank,
            "error": error,
            "tail": float(values[rank:].square().sum().sqrt()),
            "relative_error": error / float(matrix.norm()),
            "energy": float(energy[rank - 1]),
        }
        ranks.append(row)
    return {"matrix": M, "singular_values": values.tolist(), "ranks": ranks}


def describe(found: BestNumbers) -> str:
    """Return the numbers as text."""
    values = "  ".join(f"{value:.4f}" for value in found["singular_values"])
    lines = [side_by_side({"M": found["matrix"]}), "", f"  singular values σ  {values}", ""]
    for row in found["ranks"]:
        percent = 100 * row["relative_error"]
        lines.append(
            f"  rank {row['rank']}   error {row['error']:.6f}   "
            f"= root of the sum of σ² left out {row['tail']:.6f}   {percent:.2f} % of |M|"
        )
    text = """
        Of all matrices of rank r none is nearer to M than the SVD cut after r values, and its
        error is known before: it is the size of the values left out. `lorakit.factorize` gives it
        as B and A. LoRA runs no SVD: it learns B and A from data. The theorem gives the best that
        it could reach if ΔW were known.
    """
    return "\n".join([*lines, "", paragraph(text)])


def draw(found: BestNumbers) -> "Figure":
    """Return a figure of M and its nearest matrices of rank 1 and 2."""
    from lorakit.plots import draw_matrices

    matrix = torch.tensor(found["matrix"], dtype=torch.float64)
    shown = {"M": matrix}
    for row in found["ranks"][:2]:
        name = f"rank {row['rank']}: error {100 * row['relative_error']:.1f} %"
        shown[name] = nearest(matrix, row["rank"])
    return draw_matrices(shown, title="the nearest matrices of low rank", same_scale=True)
