"""Memory of a step as a function of its size: from a few traces to the largest size that fits."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Sample(NamedTuple):
    """A traced size, and the bytes in use after each allocation of its step."""

    size: int
    timeline: Sequence[int]


class Curve:
    """The most bytes in use at once, as a function of one size (sequences, tokens or rank).

    At each allocation the bytes in use are a polynomial of the size, so a line through two traces,
    or a parabola through three, is exact there, and the peak is the highest of them. If traces
    differ in their number of allocations (a loss that is computed in chunks), the polynomial goes
    through the peaks alone.

    Args:
        samples: two or three sizes with their timelines.

    >>> curve = Curve([Sample(2, [10, 4]), Sample(4, [10, 8])])
    >>> curve(4), curve(10)
    (10, 20)
    """

    def __init__(self, samples: Sequence[Sample]):
        timelines = [sample.timeline for sample in samples]
        lengths = {len(timeline) for timeline in timelines}
        if len(lengths) > 1:
            timelines = [[max(timeline)] for timeline in timelines]
        sizes = np.array([sample.size for sample in samples], dtype=float)
        values = np.array(timelines, dtype=float)
        # The highest power first.
        self.coefficients = np.linalg.solve(np.vander(sizes), values)

    def __call__(self, size: int) -> int:
        at_each_allocation = np.polyval(self.coefficients, size)
        return round(float(at_each_allocation.max()))


def find_largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest size from 1 to `most` that fits, or 0 if none does.

    Args:
        fits: True for all sizes below one that fits.
        most: the largest size that is tried.

    >>> find_largest(lambda x: x * x <= 50, 100), find_largest(lambda x: False, 100)
    (7, 0)
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
