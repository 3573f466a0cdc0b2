"""Steps at which a loss jumps, and a loss that ends above its beginning: what a run that does not
explode may still hide.
"""

import statistics
from collections.abc import Sequence

WINDOW = 20  # losses before a step, that it is compared with
LEAST = 8  # of them, before any step is judged
FAR = 8.0  # how many of their spreads above their median a jump is
FLAT = 0.01  # of the median: the least spread, where losses hardly vary


def find_spikes(losses: Sequence[float]) -> list[int]:
    """Return the steps, from 1, whose loss is far above those just before: a few such steps are
    noise, many are a warning.

    Compared is with the median of the last 20 losses and their spread (the median distance from
    it), which one jump hardly moves. A loss that stays high is a jump only while the window
    remembers better ones.

    Args:
        losses: of each step, in order.

    Source: the scaled median absolute deviation: Hampel, The influence curve and its role in robust
        estimation, 1974.

    >>> find_spikes([3.0, 2.9, 3.1, 3.0, 2.8, 2.9, 3.0, 2.9, 2.8, 9.0, 2.8])
    [10]
    """
    found = []
    for i, loss in enumerate(losses):
        before = losses[max(0, i - WINDOW) : i]
        if len(before) < LEAST:
            continue
        middle = statistics.median(before)
        spread = _spread(before, middle)
        # Written so that a loss which is no number is a jump.
        if not loss <= middle + FAR * spread:
            found.append(i + 1)
    return found


def has_climbed(losses: Sequence[float]) -> bool:
    """Tell whether a run ended above where it began: every one of its last losses, and by more than
    they vary.

    A rate that is too high but not by far does this within the warm-up, with no jump and nothing
    that is not finite.

    Args:
        losses: of each step, in order; too few of them tell nothing.

    >>> has_climbed([3.0] + [6.0 + i % 3 / 10 for i in range(30)]), has_climbed([3.0 - i / 100 for i in range(30)])
    (True, False)
    """
    last = losses[-WINDOW:]
    if len(losses) < WINDOW + LEAST:
        return False
    middle = statistics.median(last)
    return min(last) > losses[0] and middle > losses[0] + FAR / 2 * _spread(last, middle)


def _spread(losses: Sequence[float], middle: float) -> float:
    """Return how far losses lie about their median, as a standard deviation would say it."""
    return max(1.4826 * statistics.median(abs(x - middle) for x in losses), FLAT * abs(middle))
