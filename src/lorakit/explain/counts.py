"""How many parameters a change of rank r has: r (in + out) in place of in · out."""

from typing import Any

from lorakit.explain.text import paragraph

EXAMPLES = ((1000, 1000, 10), (100, 100, 5), (1024, 1024, 4), (3, 3, 2))


def count(out: int, inputs: int, rank: int) -> int:
    """Return how many values A and B have together.

    >>> count(100, 100, 5)
    1000
    """
    return rank * (out + inputs)


def break_even(out: int, inputs: int) -> float:
    """Return the rank at which A and B have as many values as the matrix; only below it anything is
    saved.

    >>> break_even(3, 3), break_even(1024, 1024)
    (1.5, 512.0)
    """
    return out * inputs / (out + inputs)


def numbers() -> dict[str, Any]:
    rows = [
        {
            "out": out,
            "in": inputs,
            "rank": rank,
            "full": out * inputs,
            "lora": count(out, inputs, rank),
            "times_fewer": out * inputs / count(out, inputs, rank),
            "break_even": break_even(out, inputs),
        }
        for out, inputs, rank in EXAMPLES
    ]
    return {"examples": rows}


def tell(told: dict[str, Any]) -> str:
    lines = [
        f"  {row['out']:>5,} × {row['in']:<5,}  rank {row['rank']:>2}   {row['full']:>9,} → {row['lora']:>6,}   "
        f"{row['times_fewer']:>6g}× fewer   saves below rank {row['break_even']:g}"
        for row in told["examples"]
    ]
    small = told["examples"][-1]
    lines[-1] = lines[-1].replace(f"{small['times_fewer']:>6g}× fewer", f"{'more!':>12} ".ljust(13))
    return "\n".join(
        [
            paragraph(
                "A matrix of out × in values is changed by B (out × r) times A (r × in): r (out + in) values."
            ),
            "",
            *lines,
            "",
            paragraph(
                "The count goes with the square of the width for the whole matrix, and with the width itself for a "
                "given rank: the wider the model, the more is saved. Break-even is r = out · in / (out + in). "
                f"A {small['out']} × {small['in']} matrix breaks even at {small['break_even']:g}, so rank {small['rank']} "
                f"trains {small['lora']} values where the whole matrix has {small['full']}."
            ),
            paragraph(
                "Fewer parameters are trained because W is frozen, not because anything is multiplied or compressed: "
                "the model itself gets no smaller."
            ),
        ]
    )


def draw(told: dict[str, Any]) -> Any:
    from lorakit.plots import draw_sizes

    return draw_sizes()
