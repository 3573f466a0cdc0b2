"""Tables and numbers for people, on stdout."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lorakit.text import line_width

if TYPE_CHECKING:
    from rich.table import Table

UNLIMITED = 200  # columns where nothing limits the width
SMALL = 1e-3


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = ""
) -> None:
    """Print a table: text on the left of its column, numbers on the right."""
    from rich.console import Console

    console = Console(highlight=False, width=line_width(sys.stdout) or UNLIMITED)
    if title:
        print(title)
    with console.capture() as captured:
        console.print(_grid(headings, list(rows)))
    for line in captured.get().splitlines():
        print(line.rstrip())


def _grid(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    grid = Table(box=SIMPLE_HEAD, padding=(0, 1))
    last = len(headings) - 1
    for index, heading in enumerate(headings):
        column = [row[index] for row in rows]
        is_numeric = bool(rows) and all(isinstance(cell, int | float | None) for cell in column)
        numbers = [len(format_number(cell)) for cell in column]
        grid.add_column(
            heading,
            justify="right" if is_numeric else "left",
            no_wrap=index < last,
            # Where a line is too long, names and texts are shortened, and no number is.
            overflow="ellipsis",
            min_width=max(numbers) if is_numeric else None,
        )
    for row in rows:
        grid.add_row(*[format_number(cell) for cell in row])
    return grid


def format_number(value: object) -> str:
    """Return a value as tables show it.

    >>> format_number(12345), format_number(0.123456), format_number(None), format_number("q_proj")
    ('12,345', '0.1235', '', 'q_proj')
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if 0 < abs(value) < SMALL:
        return f"{value:.2e}"
    return f"{value:,.4f}"


def print_metrics(columns: Mapping[str, Mapping[str, object]]) -> None:
    """Print metrics of held-out data next to each other.

    Args:
        columns: metrics by title; the rows are those of the last one.
    """
    names = list(columns.values())[-1]
    rows = []
    for name in names:
        values = [column.get(name) for column in columns.values()]
        rows.append([name.replace("_", " "), *values])
    print_table(["held-out data", *columns], rows)
