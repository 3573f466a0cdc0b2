"""One run at a high rank, cut to every lower one: each cut is the best of its rank, trains on a
little, and is measured.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence

from lorakit.adapter import Adapter
from lorakit.algebra.truncation import resize
from lorakit.data.encode import Example
from lorakit.errors import SpecError
from lorakit.rank_search.candidate import (
    SearchResult,
    check_searchable,
    continue_training,
    deciding_metric,
    score_adapter,
)
from lorakit.rank_search.config import RankSearchSpec
from lorakit.rank_search.evidence import (
    choose_rank,
)
from lorakit.text import plural
from lorakit.train.job import Job
from lorakit.train.log import METRICS, Log
from lorakit.train.loop import fit

LOOKING = 0.12  # of the run: what all measuring may cost, told by tokens
FORWARD = 0.45  # of a step: what measuring a token costs
SEEN = 0.2  # of what is measured: rows that were trained on
LEAST = 30  # held-out examples that are measured on at least, if there are so many
GENTLE = 0.5  # of the run's learning rate: where what was cut trains on


def truncate(
    job: Job, asked: RankSearchSpec, say: Callable[[str], None] = lambda text: None
) -> SearchResult:
    """Train once at the highest rank, cut, let each cut train on a little, measure all, and take
    the smallest that is enough.

    Beside the cut of one rank for all modules there is one of the same number of parameters, with
    ranks by module; of the two the better on the held-out rows is given back.

    Args:
        job: with the adapter of the highest rank attached; what it writes goes to its output
            folder.
        asked: which ranks, which metric, how much each may train on.
        say: called with lines for people.

    Raises:
        SpecError: a metric that the task has not, or no rank below that of the adapter.
        DataError: nothing, or one row, is held out.
        TrainingError: of the run.
    """
    metric, full = deciding_metric(asked.metric, job), job.adapter
    check_searchable(job, full.spec)
    lower = [r for r in asked.ranks if r < max((d.rank for d in full.deltas.values()), default=0)]
    if not lower:
        raise SpecError(
            f"No rank of {', '.join(map(str, asked.ranks))} is below that of the adapter."
        )
    begun = time.perf_counter()
    job.output.mkdir(parents=True, exist_ok=True)
    at = fit(job, lambda start: Log(job.output / METRICS, start, job.steps))
    one_run = time.perf_counter() - begun
    full.save(job.output)

    allowed = math.inf if asked.all_rows else LOOKING / FORWARD * at.tokens / (len(lower) + 2)
    held = take_share(job.held_out, allowed * (1 - SEEN))
    seen = take_share(job.examples, min(allowed, sum(len(e.ids) for e in held)) * SEEN, LEAST // 2)
    steps = round(asked.refine * job.steps / (len(lower) + 1))
    say(
        f"Rank {asked.rank} took {one_run:.1f} s. Now {', '.join(map(str, lower))}: cut"
        + (f", {plural(steps, 'step')} more each" if steps else "")
        + f", measured on {len(held):,} of "
        f"{plural(len(job.held_out), 'held-out sequence')}."
    )

    def cut(name: str, size: Mapping[str, int]) -> tuple[Adapter, float]:
        told = resize(full, rank=size.get("rank"), parameters=size.get("parameters"))
        small = (
            continue_training(job, told.adapter, name, steps=steps, lr=GENTLE * job.lr)
            if steps
            else told.adapter
        )
        return small, told.energy

    made: dict[int, tuple[Adapter, float]] = {r: cut(f"rank-{r}", {"rank": r}) for r in lower}
    made[max(asked.ranks)] = (full, 1.0)
    scored = {r: score_adapter(job, adapter, held, metric) for r, (adapter, _) in made.items()}
    choice = choose_rank(
        scored, metric, seed=job.settings.seed, of=len({e.row for e in job.held_out})
    )
    fit_of = {
        r: score_adapter(job, adapter, seen, metric).metric for r, (adapter, _) in made.items()
    }
    small, facts = made[choice.rank][0], {}
    if choice.rank in lower:
        spread, _ = cut(
            "by-module",
            {"parameters": sum(p.numel() for d in small.deltas.values() for p in d.parameters())},
        )
        pair = {0: scored[choice.rank], 1: score_adapter(job, spread, held, metric)}
        better = choose_rank(pair, metric).best == 1
        facts["by_module"] = {
            "metric": pair[1].metric,
            "taken": better,
            "parameters": spread.parameters_count,
            "ranks": {name: delta.rank for name, delta in spread.deltas.items()},
        }
        small = spread if better else small
    seconds = time.perf_counter() - begun
    extra = {
        r: {
            "train": fit_of[r],
            "parameters": adapter.parameters_count,
            "energy": energy,
            "metrics": scored[r].metrics,
        }
        for r, (adapter, energy) in made.items()
    }
    facts |= {
        "extra": extra,
        "steps": at.step,
        "tokens": at.tokens,
        "refined_steps": steps,
        "rows_measured": len(held),
        "seconds": round(seconds, 3),
        "seconds_of_one_run": round(one_run, 3),
        "cost": round(seconds / one_run, 3),
    }
    return SearchResult(choice, small, metric, facts)


def take_share(examples: Sequence[Example], tokens: float, least: int = LEAST) -> Sequence[Example]:
    """Return examples, evenly spread, that have about so many tokens together.

    >>> [e.row for e in take_share([Example(ids=[1] * 10, row=i) for i in range(8)], tokens=40, least=1)]
    [0, 2, 4, 6]
    """
    total = sum(len(e.ids) for e in examples)
    count = (
        len(examples)
        if tokens >= total
        else max(min(least, len(examples)), int(len(examples) * tokens / total))
    )
    return [examples[i * len(examples) // count] for i in range(count)]
