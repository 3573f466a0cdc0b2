"""The number of parameters of a change of rank r: r (in + out) instead of in · out."""

from typing import TYPE_CHECKING, TypedDict

from lorakit.explain.text import paragraph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = ((1000, 1000, 10), (100, 100, 5), (1024, 1024, 4), (3, 3, 2))


CountRow = TypedDict(
    "CountRow",
    {
        "out": int,
        "in": int,
        "rank": int,
        "full": int,
        "lora": int,
        "times_fewer": float,
        "break_even": float,
    },
)


class CountNumbers(TypedDict):
    """The counts of a few matrices."""

    examples: list[CountRow]


def count(out: int, inputs: int, rank: int) -> int:
    """Return the number of values in A and B together.

    >>> count(100, 100, 5)
    1000
    """
    return rank * (out + inputs)


def break_even(out: int, inputs: int) -> float:
    """Return the rank at which A and B have as many values as the matrix.

    Only a lower rank saves anything.

    >>> break_even(3, 3), break_even(1024, 1024)
    (1.5, 512.0)
    """
    return out * inputs / (out + inputs)


def numbers() -> CountNumbers:
    """Return the counts of a few matrices."""
    rows: list[CountRow] = []
    for out, inputs, rank in EXAMPLES:
        full, lora = out * inputs, count(out, inputs, rank)
        row: CountRow = {
            "out": out,
            "in": inputs,
            "rank": rank,
            "full": full,
            "lora": lora,
            "times_fewer": full / lora,
            "break_even": break_even(out, inputs),
        }
        rows.append(row)
    return {"examples": rows}


def describe(found: CountNumbers) -> str:
    """Return the numbers as text."""
    small = found["examples"][-1]
    size = f"{small['out']} × {small['in']}"
    opening = """
        A matrix of out × in values is changed by B (out × r) times A (r × in): r (out + in)
        values.
    """
    growth = f"""
        The count grows with the square of the width for the whole matrix, and with the width
        itself for a given rank: the wider the model, the more is saved. Break-even is r = out ·
        in / (out + in). A {size} matrix breaks even at {small["break_even"]:g}, so rank
        {small["rank"]} trains {small["lora"]} values, while the whole matrix has {small["full"]}.
    """
    closing = """
        Fewer parameters are trained because W is frozen, not because anything is multiplied or
        compressed: the model itself gets no smaller.
    """
    lines = [paragraph(opening), "", *[_line(row) for row in found["examples"]], ""]
    return "\n".join([*lines, paragraph(growth), paragraph(closing)])


def _line(row: CountRow) -> str:
    shape = f"{row['out']:>5,} × {row['in']:<5,}"
    counts = f"{row['full']:>9,} → {row['lora']:>6,}"
    saving = f"{row['times_fewer']:>6g}× fewer"
    if row["times_fewer"] < 1:
        saving = f"{'more!':>13}"
    return (
        f"  {shape}  rank {row['rank']:>2}   {counts}   {saving}   "
        f"saves below rank {row['break_even']:g}"
    )


def draw(found: CountNumbers) -> "Figure":
    """Return a figure of parameters by width and by rank."""
    from lorakit.plots import draw_sizes

    return draw_sizes()
