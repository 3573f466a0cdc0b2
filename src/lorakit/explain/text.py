"""Matrices and paragraphs as a terminal shows them."""

import textwrap
from collections.abc import Mapping, Sequence

Matrix = Sequence[Sequence[float]]
WIDTH = 100


def side_by_side(matrices: Mapping[str, Matrix], form: str = "g") -> str:
    """Return matrices next to each other, each under its name.

    >>> print(side_by_side({"B": [[1.0], [0.5]], "A": [[2.0, 3.0]]}))
      B     A
      1     2 3
      0.5
    """
    blocks = [_block(name, rows, form) for name, rows in matrices.items()]
    height = max(len(block) for block in blocks)
    lines = []
    for index in range(height):
        parts = [_line_of(block, index) for block in blocks]
        line = "   ".join(parts)
        lines.append(f"  {line}".rstrip())
    return "\n".join(lines)


def _line_of(block: list[str], index: int) -> str:
    """Return a line of a block, or spaces below it."""
    if index < len(block):
        return block[index]
    width = len(block[0])
    return " " * width


def _block(name: str, rows: Matrix, form: str) -> list[str]:
    """Return a matrix under its name, as lines of one width."""
    cells = []
    for row in rows:
        cells.append([format(value, form) for value in row])
    widths = []
    for column in zip(*cells, strict=True):
        widths.append(max(len(cell) for cell in column))
    lines = [name]
    for row in cells:
        aligned = []
        for cell, width in zip(row, widths, strict=True):
            aligned.append(cell.rjust(width))
        lines.append(" ".join(aligned))
    longest = max(len(line) for line in lines)
    return [line.ljust(longest) for line in lines]


def paragraph(text: str) -> str:
    """Return text in lines of a page."""
    return textwrap.fill(" ".join(text.split()), WIDTH, break_on_hyphens=False)
