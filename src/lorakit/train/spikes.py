"""Spikes of the loss, and a loss that ends above its beginning."""

import statistics
from collections.abc import Sequence

WINDOW = 20  # number of losses before a step that it is compared with
LEAST = 8  # a step with fewer losses before it is not judged
FAR = 8.0  # a loss that is more spreads above the median than this is a spike
FLAT = 0.01  # least spread, as a share of the median: for losses that hardly vary


def find_spikes(losses: Sequence[float]) -> list[int]:
    """Return the steps, from 1, whose loss is far above the losses just before.

    A few spikes are noise, many are a warning. A loss is compared with the median of the last 20
    losses and their spread (the median distance from it), which a single spike hardly moves. A loss
    that stays high is a spike only while most of the window is lower.

    Args:
        losses: the loss of each step, in order.

    Source: the scaled median absolute deviation: Hampel, The influence curve and its role in robust
        estimation, 1974.

    >>> find_spikes([3.0, 2.9, 3.1, 3.0, 2.8, 2.9, 3.0, 2.9, 2.8, 9.0, 2.8])
    [10]
    """
    steps = []
    for i, loss in enumerate(losses):
        before = losses[max(0, i - WINDOW) : i]
        if len(before) < LEAST:
            continue
        median = statistics.median(before)
        limit = median + FAR * _spread(before, median)
        # "not <=", so that a loss that is no number is a spike.
        if not loss <= limit:
            steps.append(i + 1)
    return steps


def has_climbed(losses: Sequence[float]) -> bool:
    """Return True if every one of the last losses is above the first, by more than they vary.

    A learning rate that is slightly too high does this within the warm-up, with no spike and no
    loss that is not finite.

    Args:
        losses: the loss of each step, in order; False where they are too few to judge.

    >>> has_climbed([3.0] + [6.0 + i % 3 / 10 for i in range(30)])
    True
    >>> has_climbed([3.0 - i / 100 for i in range(30)])
    False
    """
    if len(losses) < WINDOW + LEAST:
        return False
    first, last = losses[0], losses[-WINDOW:]
    median = statistics.median(last)
    margin = FAR / 2 * _spread(last, median)
    return min(last) > first and median > first + margin


def _spread(losses: Sequence[float], median: float) -> float:
    """Return the spread of losses about their median, on the scale of a standard deviation."""
    distances = [abs(loss - median) for loss in losses]
    deviation = 1.4826 * statistics.median(distances)
    return max(deviation, FLAT * abs(median))
