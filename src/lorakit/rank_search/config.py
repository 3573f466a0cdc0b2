"""Choosing: how a rank is looked for. Torch is not imported here, so `--help` can read the fields."""

import math
from dataclasses import dataclass
from typing import Any

from lorakit.errors import SpecError
from lorakit.spec import option
from lorakit.text import plural

HIGHEST = 32
WAYS = ("truncate", "grid", "grow", "threshold", "advice")
METRICS = ("auto", "loss", "accuracy", "f1", "precision", "recall")
TRAINING = ("truncate", "grid", "grow")  # the ways that train, and need data


@dataclass(frozen=True, kw_only=True)
class RankSearchSpec:
    """How a rank is looked for; checks itself, and names every fault at once.

    Raises:
        SpecError: a field out of its range, or one that its way of looking does not use.
    """

    way: str = option(
        "truncate",
        "truncate: one run at --rank, cut to every lower one; grid: one run for each rank; grow: from small until it is "
        "enough; threshold: by the singular values of W, or of an adapter; advice: by task, data and memory",
        choices=WAYS,
    )
    rank: int = option(
        HIGHEST, "the highest rank: that of the one run, of the grid, or where growing ends"
    )
    try_ranks: tuple[int, ...] = option(
        (), "ranks to try, the highest left out (default: 1, 2, 4, … below --rank)", several=True
    )
    metric: str = option(
        "auto",
        "what decides; auto: accuracy where rows have classes, else loss; f1, precision and recall: of the second of two",
        choices=METRICS,
    )
    refine: float = option(
        0.12,
        "truncate: steps, as a share of the run's, for which all that was cut trains on together",
    )
    all_rows: bool = option(False, "truncate: measure on all held-out rows, whatever it costs")
    good_enough: float | None = option(
        None, "grow: stop once the metric is as good as this", type=float
    )
    threshold: float = option(0.9, "threshold: the share of the singular values that is kept")
    energy: str = option(
        "square",
        "threshold: share of the sum of the squares, or of the sum of the values",
        choices=("square", "sum"),
    )
    adapter: str | None = option(
        None, "threshold: an adapter folder, whose change is looked at beside W", type=str
    )
    plot: str | None = option(
        None, "a file for the curve as a picture (.png, .svg, .pdf)", type=str
    )

    def __post_init__(self) -> None:
        given: Any = self.try_ranks
        object.__setattr__(
            self, "try_ranks", tuple(given) if isinstance(given, list | tuple) else (given,)
        )
        faults = [f"{name}: {fault}" for name, fault in self._faults()]
        if faults:
            raise SpecError(
                f"{plural(len(faults), 'fault')} in how a rank is looked for.",
                faults,
                "Nothing was started.",
            )
        object.__setattr__(self, "try_ranks", tuple(sorted({int(r) for r in self.try_ranks})))

    def _faults(self):
        for name, allowed in (("way", WAYS), ("metric", METRICS), ("energy", ("square", "sum"))):
            if getattr(self, name) not in allowed:
                yield name, f"{getattr(self, name)!r} is none of {', '.join(allowed)}"
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 2:
            yield "rank", f"a whole number of at least 2 is needed, got {self.rank!r}"
            return
        for rank in self.try_ranks:
            if not str(rank).isdecimal() or not 1 <= int(rank) < self.rank:
                yield (
                    "try_ranks",
                    f"whole numbers from 1 to below the highest, {self.rank}, are needed, got {rank!r}",
                )
        if not 0 <= self.refine <= 1:
            yield "refine", f"a share from 0 to 1 is needed, got {self.refine!r}"
        if not 0 < self.threshold < 1:
            yield "threshold", f"a share above 0 and below 1 is needed, got {self.threshold!r}"
        if self.good_enough is not None and not math.isfinite(self.good_enough):
            yield "good_enough", f"a finite number is needed, got {self.good_enough!r}"
        uses = {
            "truncate": ("try_ranks", "metric", "refine", "all_rows", "plot"),
            "advice": (),
            "grid": ("try_ranks", "metric", "plot"),
            "grow": ("try_ranks", "metric", "good_enough", "plot"),
            "threshold": ("threshold", "energy", "adapter"),
        }
        if self.way in uses:
            for name in (
                "try_ranks",
                "metric",
                "refine",
                "all_rows",
                "good_enough",
                "threshold",
                "energy",
                "adapter",
                "plot",
            ):
                if (
                    name not in uses[self.way]
                    and getattr(self, name) != type(self).__dataclass_fields__[name].default
                ):
                    # Lists have no plain default: empty is what they are.
                    if name == "try_ranks" and not self.try_ranks:
                        continue
                    yield name, f"--way {self.way} does not use it"

    @property
    def ranks(self) -> tuple[int, ...]:
        """All ranks that are tried, ascending, the highest last.

        >>> RankSearchSpec(rank=6).ranks
        (1, 2, 4, 6)
        """
        lower = self.try_ranks or tuple(2**i for i in range((self.rank - 1).bit_length()))
        return (*(r for r in lower if r < self.rank), self.rank)
