"""Tables in Markdown."""

from collections.abc import Sequence

MARKS = {"l": "---", "r": "---:"}


def format_table(heads: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Return a Markdown table; a cell's own bars are escaped.

    Args:
        heads: the headings of the columns.
        rows: one text for each cell.
        align: "l" or "r" for each column; the first left and the others right without it.
    """
    letters = align or "l" + "r" * (len(heads) - 1)
    marks = [MARKS[letter] for letter in letters]
    lines = []
    for row in (heads, marks, *rows):
        cells = [_format_cell(value) for value in row]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def _format_cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
