"""RankSearchSpec: settings of a search for a rank.

Torch is not imported here, so that `--help` answers at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from lorakit.errors import NOT_STARTED, SpecError, refuse_unknown_names
from lorakit.spec import Fault, is_number, is_whole, option
from lorakit.text import add_hint, near_misses, plural

HIGHEST = 32
WAYS = ("truncate", "grid", "grow", "threshold", "advice")
CLASS_METRICS = ("accuracy", "f1", "precision", "recall")
METRICS = ("auto", "loss", *CLASS_METRICS)
ENERGIES = ("square", "sum")
TRAINING = ("truncate", "grid", "grow")  # the ways that train, and need data
NEW_RUN, BY_LAYER = "a search starts a new run", "the search itself finds ranks by layer"
MANY_RUNS = "a search is many short runs"
NEW_ADAPTERS = "a search is of new adapters"
# Settings of a run that a search does not take, and why.
UNUSED = {
    "resume": NEW_RUN,
    "overwrite": NEW_RUN,
    "ranks": BY_LAYER,
    "rank_budget": BY_LAYER,
    "log_to": MANY_RUNS,
    "adapter": NEW_ADAPTERS,
    "any_base": NEW_ADAPTERS,
}


@refuse_unknown_names
@dataclass(frozen=True, kw_only=True)
class RankSearchSpec:
    """Settings of a search for a rank, checked as they are made.

    The metadata `ways` of a field lists the ways that use it; without it all do.

    Raises:
        SpecError: values that a field does not take, or that its way does not use; all are named.
    """

    way: str = option(
        "truncate",
        "truncate trains once at --rank and cuts that adapter to every lower rank; grid trains "
        "once for each rank; grow starts small and stops when the quality is sufficient; threshold "
        "counts the singular values of W, or of an adapter; advice uses rules for task, data and "
        "memory",
        choices=WAYS,
    )
    rank: int = option(HIGHEST, "the highest rank to try")
    try_ranks: tuple[int, ...] = option(
        (),
        "lower ranks to try (default: 1, 2, 4, … below --rank)",
        several=True,
        metavar="N",
        ways=TRAINING,
    )
    metric: str = option(
        "auto",
        "metric to compare ranks by; auto is accuracy for classes and loss otherwise; f1, "
        "precision and recall are those of the second of two classes",
        choices=METRICS,
        ways=TRAINING,
    )
    refine: float = option(
        0.12,
        "truncate: steps that the cut adapters train for, all together, as a share of the steps of "
        "the run",
        ways=("truncate",),
    )
    all_rows: bool = option(
        False, "truncate: score on all held-out rows, even if it takes long", ways=("truncate",)
    )
    good_enough: float | None = option(
        None, "grow: stop at this value of the metric", type=float, ways=("grow",)
    )
    threshold: float = option(
        0.9, "threshold: share of the singular values to keep", ways=("threshold",)
    )
    energy: str = option(
        "square",
        "threshold: the share is of the sum of their squares, or of their sum",
        choices=ENERGIES,
        ways=("threshold",),
    )
    adapter: str | None = option(
        None,
        "threshold: folder of an adapter whose change is analysed in addition to W",
        type=str,
        ways=("threshold",),
    )
    plot: str | None = option(
        None,
        "write the curve as a picture to this file (.png, .svg, .pdf)",
        type=str,
        ways=TRAINING,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "try_ranks", _as_tuple(self.try_ranks))
        faults = [f"{name}: {fault}" for name, fault in self._faults()]
        if faults:
            raise SpecError(
                f"{plural(len(faults), 'fault')} in the settings of the search.",
                faults,
                NOT_STARTED,
            )
        ranks = {int(rank) for rank in self.try_ranks}
        object.__setattr__(self, "try_ranks", tuple(sorted(ranks)))

    def _faults(self) -> Iterator[Fault]:
        yield from self._choice_faults()
        if not is_whole(self.rank, 2):
            yield "rank", f"a whole number of at least 2 is needed, got {self.rank!r}"
            return
        yield from self._lower_rank_faults()
        yield from self._number_faults()
        if self.way in WAYS:
            yield from self._unused_values()

    def _choice_faults(self) -> Iterator[Fault]:
        for field in fields(self):
            value, choices = getattr(self, field.name), field.metadata.get("choices")
            if choices and value not in choices:
                fault = f"{value!r} is none of {', '.join(choices)}"
                yield field.name, add_hint(fault, near_misses(str(value), choices))

    def _lower_rank_faults(self) -> Iterator[Fault]:
        for rank in self.try_ranks:
            if not str(rank).isdecimal() or not 1 <= int(rank) < self.rank:
                yield (
                    "try_ranks",
                    "whole numbers from 1 to below the highest, "
                    f"{self.rank}, are needed, got {rank!r}",
                )

    def _number_faults(self) -> Iterator[Fault]:
        if not is_number(self.refine) or not 0 <= self.refine <= 1:
            yield "refine", f"a share from 0 to 1 is needed, got {self.refine!r}"
        if not is_number(self.threshold) or not 0 < self.threshold < 1:
            yield "threshold", f"a share above 0 and below 1 is needed, got {self.threshold!r}"
        if self.good_enough is not None and not is_number(self.good_enough):
            yield "good_enough", f"a finite number is needed, got {self.good_enough!r}"

    def _unused_values(self) -> Iterator[Fault]:
        for field in fields(self):
            is_used = self.way in field.metadata.get("ways", WAYS)
            if not is_used and getattr(self, field.name) != field.default:
                yield field.name, f"--way {self.way} does not use it"

    @property
    def ranks(self) -> tuple[int, ...]:
        """All ranks to try, ascending, the highest last.

        >>> RankSearchSpec(rank=6).ranks
        (1, 2, 4, 6)
        """
        lower = self.try_ranks
        if not lower:
            count = (self.rank - 1).bit_length()
            lower = tuple(2**i for i in range(count))
        return (*lower, self.rank)


def _as_tuple(ranks: object) -> tuple[object, ...]:
    """Return ranks as a tuple; YAML gives one number, or a list."""
    return tuple(ranks) if isinstance(ranks, list | tuple) else (ranks,)
