"""Tables and numbers for people, on stdout."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lorakit.text import line_width

if TYPE_CHECKING:
    from rich.table import Table

UNLIMITED = 200  # columns where nothing limits the width
SMALL = 1e-3
EDGES = 3  # columns that a border and two spaces take
LEAST_TEXT = 5  # columns of a text that is shortened


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = ""
) -> None:
    """Print a table: text on the left of its column, numbers on the right."""
    from rich.console import Console

    width = line_width(sys.stdout) or UNLIMITED
    console = Console(highlight=False, width=width)
    if title:
        print(title)
    with console.capture() as captured:
        console.print(_grid(headings, list(rows), width))
    for line in captured.get().splitlines():
        print(line.rstrip())


def _grid(headings: Sequence[str], rows: Sequence[Sequence[object]], width: int) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    grid = Table(box=SIMPLE_HEAD, padding=(0, 1))
    last = len(headings) - 1
    numeric = [_is_numeric([row[index] for row in rows]) for index in range(len(headings))]
    cells = [[format_number(cell) for cell in row] for row in rows]
    sizes: list[int] = []
    for index, heading in enumerate(headings):
        texts = [row[index] for row in cells]
        # The heading of a number may be broken between words.
        texts += heading.split() if numeric[index] else [heading]
        sizes.append(max(map(len, texts), default=0))
    longest = _longest_text(sizes, numeric, width - EDGES * len(headings) - 1)
    for index, heading in enumerate(headings):
        size = sizes[index] if numeric[index] else min(sizes[index], longest)
        is_one_line = index < last and not numeric[index]
        grid.add_column(
            heading,
            justify="right" if numeric[index] else "left",
            no_wrap=is_one_line,
            overflow="ellipsis",
            min_width=size,
            max_width=None if numeric[index] else size,
        )
    for row in cells:
        grid.add_row(*row)
    return grid


def _is_numeric(column: Sequence[object]) -> bool:
    return bool(column) and all(isinstance(cell, int | float | None) for cell in column)


def _longest_text(sizes: Sequence[int], numeric: Sequence[bool], room: int) -> int:
    """Return the length to which texts are shortened, so that all columns fit; numbers stay whole.

    >>> _longest_text([30, 9, 12], [False, True, False], room=40)
    19
    """
    numbers = [size for size, is_number in zip(sizes, numeric, strict=True) if is_number]
    texts = [size for size, is_number in zip(sizes, numeric, strict=True) if not is_number]
    longest = max(texts, default=0)
    while longest > LEAST_TEXT and sum(min(size, longest) for size in texts) > room - sum(numbers):
        longest -= 1
    return longest


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
