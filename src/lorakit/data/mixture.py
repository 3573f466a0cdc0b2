"""Several data sets in one epoch: how often the rows of each are seen."""

from collections.abc import Iterator, Sequence

import torch

from lorakit.data.rows import Rows


def count_draws(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how many rows of each data set an epoch has.

    Each row is seen at least once, and the rows of each data set have its share of all.

    Args:
        sizes: rows of each data set.
        weights: of each data set, above zero.

    >>> count_draws([100, 10], weights=[0.5, 0.5]), count_draws([100, 10], weights=[9, 1])
    ([100, 100], [100, 11])
    """
    pairs = list(zip(sizes, weights, strict=True))
    rows_per_weight = max(size / weight for size, weight in pairs)
    draws: list[int] = []
    for size, weight in pairs:
        share = round(weight * rows_per_weight)
        draws.append(max(size, share))
    return draws


def draw_positions(
    positions: Sequence[Sequence[int]], draws: Sequence[int], seed: int
) -> list[int]:
    """Return positions of rows, each as often as it is seen in an epoch, in their order.

    Args:
        positions: of the rows of each data set.
        draws: rows of each data set in an epoch, as `count_draws` returns them.
        seed: of the choice of the rows that are seen once more than others.

    >>> draw_positions([[0, 1, 2], [3, 4]], draws=[3, 4], seed=0)
    [0, 1, 2, 3, 3, 4, 4]
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: list[int] = []
    for own, count in zip(positions, draws, strict=True):
        times, rest = divmod(count, len(own))
        drawn += [*own] * times
        order = torch.randperm(len(own), generator=generator)
        drawn += [own[position] for position in order[:rest].tolist()]
    return sorted(drawn)


def describe_draws(
    parts: Sequence[Rows], sizes: Sequence[int], draws: Sequence[int]
) -> Iterator[str]:
    """Yield a line for each data set: how often its rows are seen."""
    for part, size, count in zip(parts, sizes, draws, strict=True):
        share = 100 * count / sum(draws)
        often = "once" if count == size else f"{count / size:.4g} times"
        whole = f"{share:.1f} % of an epoch from {part.source}"
        yield f"data: {whole}: {size:,} rows, each {often}"
