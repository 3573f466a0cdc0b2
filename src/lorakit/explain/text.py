"""Matrices and paragraphs as a terminal shows them."""

import textwrap
from collections.abc import Mapping, Sequence

Matrix = Sequence[Sequence[float]]


def beside(matrices: Mapping[str, Matrix], form: str = "g") -> str:
    """Return matrices next to each other, each under its name.

    >>> print(beside({"B": [[1.0], [0.5]], "A": [[2.0, 3.0]]}))
      B     A
      1     2 3
      0.5
    """
    blocks: list[list[str]] = []
    for name, rows in matrices.items():
        cells = [[format(value, form) for value in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            name,
            *(
                " ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
                for row in cells
            ),
        ]
        blocks.append([line.ljust(max(map(len, lines))) for line in lines])
    height = max(map(len, blocks))
    full = [block + [" " * len(block[0])] * (height - len(block)) for block in blocks]
    return "\n".join(("  " + "   ".join(parts)).rstrip() for parts in zip(*full, strict=True))


def paragraph(text: str) -> str:
    """Return text broken into lines of a page."""
    return textwrap.fill(" ".join(text.split()), 110, break_on_hyphens=False)
