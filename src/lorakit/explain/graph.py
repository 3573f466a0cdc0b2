"""A matrix as a graph from inputs to outputs, and the same through the rank.

Source: U, S and V are those of the SVD; Golub and Van Loan, Matrix Computations, 4th ed., 2.4.
"""

from typing import TYPE_CHECKING, TypedDict

import torch

from lorakit.explain.best import M
from lorakit.explain.text import Matrix, paragraph, side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANK = 2


class GraphNumbers(TypedDict):
    """A matrix, its factors as edges through the rank, and the number of edges."""

    matrix: Matrix
    rank: int
    singular_values: list[float]
    first: Matrix
    second: Matrix
    relative_error: float
    edges: int
    edges_through_rank: int


def numbers() -> GraphNumbers:
    """Return the edges from inputs to outputs, and both layers of edges through the rank.

    Rows of M are inputs here: M is about `first` @ `second`. The sign of a direction is free; the
    first input's edges are negative.

    >>> [round(value, 4) for value in numbers()["singular_values"]]
    [15.1157, 0.7126, 0.0928]
    """
    matrix = torch.tensor(M, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(matrix)
    sign = torch.where(U[0, :RANK] > 0, -1.0, 1.0)
    first = U[:, :RANK] * sign
    second = (S[:RANK, None] * Vh[:RANK]) * sign[:, None]
    error = float((first @ second - matrix).norm() / matrix.norm())
    return {
        "matrix": M,
        "rank": RANK,
        "singular_values": S.tolist(),
        "first": first.tolist(),
        "second": second.tolist(),
        "relative_error": error,
        "edges": matrix.numel(),
        "edges_through_rank": first.numel() + second.numel(),
    }


def describe(found: GraphNumbers) -> str:
    """Return the numbers as text."""
    values = ", ".join(f"{value:.4f}" for value in found["singular_values"])
    layers = {"I → R (U)": found["first"], "R → Q (σ V)": found["second"]}
    edges = f"""
        Inputs I, outputs Q, and a weight on each of {found["edges"]} edges. With singular values
        {values} two middle nodes R carry nearly all: I → R → Q has {found["edges_through_rank"]}
        edges and a relative error of {found["relative_error"]:.4f}. `--plot FILE` draws both.
    """
    lora = "In LoRA the change runs through the few nodes R; all edges of W stay."
    parts = [side_by_side({"I → Q": found["matrix"]}), "", side_by_side(layers, ".2f"), ""]
    return "\n".join([*parts, paragraph(edges), paragraph(lora)])


def draw(found: GraphNumbers) -> "Figure":
    """Return a figure of both graphs."""
    from lorakit.plots import draw_graph

    title = f"rank {found['rank']}, relative error {found['relative_error']:.4f}"
    # In the library a row is an output.
    return draw_graph(
        _transposed(found["matrix"]),
        _transposed(found["first"]),
        _transposed(found["second"]),
        title=title,
    )


def _transposed(rows: Matrix) -> list[tuple[float, ...]]:
    return list(zip(*rows, strict=True))
