"""Tables and numbers as a person reads them, on stdout."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> None:
    """Print a table: text on the left, numbers on the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    cells = [list(row) for row in rows]
    grid = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for i, heading in enumerate(headings):
        right = bool(cells) and all(isinstance(row[i], int | float | None) for row in cells)
        grid.add_column(
            heading, justify="right" if right else "left", no_wrap=i < len(headings) - 1
        )
    for row in cells:
        grid.add_row(*(number(cell) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(
            highlight=False, width=200
        )  # nobody's window: nothing is cut to its width
    if title:
        print(title)
    with console.capture() as captured:
        console.print(grid)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def number(value: Any) -> str:
    """Return a value as tables show it.

    >>> number(12345), number(0.123456), number(None), number("q_proj")
    ('12,345', '0.1235', '', 'q_proj')
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:,.4f}"


def measures(
    before: dict[str, Any] | None, after: dict[str, Any] | None, *more: tuple[str, dict[str, Any]]
) -> None:
    """Print metrics side by side, one column a state."""
    columns = [("before", before or {}), *more, ("after", after or {})]
    rows = [
        [name.replace("_", " "), *(column.get(name) for _, column in columns)]
        for name in (after or before or {})
    ]
    table(["held-out data", *(title for title, _ in columns)], rows)
