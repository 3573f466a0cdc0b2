"""The best approximation of a given rank, and its error before it is computed."""

from typing import Any

import torch

from lorakit.analysis.spectra import cumulative_energy
from lorakit.explain.text import beside, paragraph
from lorakit.linalg import factorize

M = [[2.0, 3.0, 1.0], [5.0, 7.0, 4.0], [6.0, 8.0, 5.0]]


def nearest(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the matrix of this rank that is nearest to one given.

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


def numbers() -> dict[str, Any]:
    """Return the error of each rank, beside what the singular values left out say it is."""
    matrix = torch.tensor(M, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    ranks: list[dict[str, Any]] = []
    for rank in (1, 2, 3):
        error, tail = (
            float((nearest(matrix, rank) - matrix).norm()),
            float(values[rank:].square().sum().sqrt()),
        )
        ranks.append(
            {
                "rank": rank,
                "error": error,
                "tail": tail,
                "relative_error": error / float(matrix.norm()),
                "energy": float(cumulative_energy(values)[rank - 1]),
            }
        )
    return {"matrix": M, "singular_values": values.tolist(), "ranks": ranks}


def tell(told: dict[str, Any]) -> str:
    values = "  ".join(f"{value:.4f}" for value in told["singular_values"])
    lines = [
        f"  rank {r['rank']}   error {r['error']:.6f}   = root of the sum of σ² left out {r['tail']:.6f}   "
        f"{100 * r['relative_error']:.2f} % of |M|"
        for r in told["ranks"]
    ]
    return "\n".join(
        [
            beside({"M": told["matrix"]}),
            "",
            f"  singular values σ  {values}",
            "",
            *lines,
            "",
            paragraph(
                "Of all matrices of rank r none is nearer to M than the SVD cut after r values, and its error is known "
                "before: the values that were left out. `lorakit.factorize` gives it as B and A. LoRA runs no SVD: it "
                "learns B and A from data. The theorem says what the best it could reach is, if ΔW were known."
            ),
        ]
    )


def draw(told: dict[str, Any]) -> Any:
    from lorakit.plots import draw_matrices

    matrix = torch.tensor(told["matrix"], dtype=torch.float64)
    shown = {"M": told["matrix"]}
    for row in told["ranks"][:2]:
        shown[f"rank {row['rank']}: off by {100 * row['relative_error']:.1f} %"] = nearest(
            matrix, row["rank"]
        ).tolist()
    return draw_matrices(shown, title="the nearest matrices of low rank", same_scale=True)
