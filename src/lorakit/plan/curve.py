"""How the memory of a step goes with its size: from a few traces to the largest size that fits."""

from collections.abc import Callable, Sequence

import numpy as np


class Curve:
    """The most bytes in use at once, as a function of one size (sequences, tokens or rank).

    At each allocation what is in use is a polynomial of the size, so a line through two traces, or
    a parabola through three, is exact there, and the peak is the highest of them. Where traces
    differ in their number of allocations (a loss that is computed in pieces), the polynomial goes
    through the peaks alone.

    Args:
        traced: (size, bytes in use after each allocation) of two or three sizes.

    >>> curve = Curve([(2, [10, 4]), (4, [10, 8])])
    >>> curve(4), curve(10)
    (10, 20)
    """

    def __init__(self, traced: Sequence[tuple[int, Sequence[int]]]):
        lines = [line for _, line in traced]
        if len({len(line) for line in lines}) > 1:
            lines = [[max(line)] for line in lines]
        at, values = np.array([x for x, _ in traced], dtype=float), np.array(lines, dtype=float)
        self.powers = np.linalg.solve(np.vander(at), values)  # highest power first

    def __call__(self, size: int) -> int:
        return round(float(np.polyval(self.powers, size).max()))


def find_largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest size from 1 to `most` that fits, where all below a size that fits do; 0
    where none does.

    >>> find_largest(lambda x: x * x <= 50, 100), find_largest(lambda x: False, 100)
    (7, 0)
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
