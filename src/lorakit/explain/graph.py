"""A matrix as a graph from inputs to outputs, and the same through the rank."""

from typing import Any

import torch

from lorakit.explain.best import M
from lorakit.explain.text import beside, paragraph

RANK = 2


def numbers() -> dict[str, Any]:
    """Return the edges from inputs to outputs, and of the two layers of edges through the rank.

    Rows of M are inputs here: M is about `first` @ `second`. The sign of a direction is free; the
        first input's edges are
    negative.

    >>> [round(value, 4) for value in numbers()["singular_values"]]
    [15.1157, 0.7126, 0.0928]
    """
    matrix = torch.tensor(M, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(matrix)
    sign = torch.where(U[0, :RANK] > 0, -1.0, 1.0)
    first, second = U[:, :RANK] * sign, (S[:RANK, None] * Vh[:RANK]) * sign[:, None]
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


def tell(told: dict[str, Any]) -> str:
    return "\n".join(
        [
            beside({"I → Q": told["matrix"]}),
            "",
            beside({"I → R (U)": told["first"], "R → Q (σ V)": told["second"]}, ".2f"),
            "",
            paragraph(
                f"Inputs I, outputs Q, and a weight on each of {told['edges']} edges. With singular values "
                f"{', '.join(f'{value:.4f}' for value in told['singular_values'])} two middle nodes R carry nearly all: "
                f"I → R → Q has {told['edges_through_rank']} edges and is off by {told['relative_error']:.4f} of the whole. "
                "`--plot FILE` draws both."
            ),
            paragraph(
                "In LoRA it is the change that runs through the few nodes R; the edges of W stay beside them, all of them."
            ),
        ]
    )


def draw(told: dict[str, Any]) -> Any:
    from lorakit.plots import draw_graph

    # The library's matrices have a row an output.
    M, A, B = (list(zip(*told[name], strict=True)) for name in ("matrix", "first", "second"))
    return draw_graph(
        M, A, B, title=f"rank {told['rank']}, relative error {told['relative_error']:.4f}"
    )
