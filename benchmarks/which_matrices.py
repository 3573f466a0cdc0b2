"""Which attention matrices should be adapted, and at which rank?

Setting: tables 5 and 6 of the paper, on models that train in seconds.

- Table 5: the same number of parameters, spent on one, two or four of the attention matrices. The
  tasks are sst2 (MiniLM, 3,000 rows, accuracy on the 872 rows of test.tsv, two seeds) and oz-books
  (stories260K, loss on 90 passages, three seeds). In MiniLM all four matrices are 384 x 384, so
  ranks 8, 4 and 2 cost the same. In stories260K, k and v are half as large as q and o, and get the
  highest rank that stays within the budget.
- Table 6: ranks 1, 2, 4, 8 and 64 on q, on q and v, and on all four matrices; sst2, one seed.

All runs have the same steps, batches and learning rate, alpha 32, one thread. So the scale, alpha /
rank, is 16 at rank 2. All four matrices at rank 2 are therefore also trained with alpha 8, which
gives the scale of rank 8.

Predicted, from the paper: two matrices at half the rank are not worse than one matrix at the whole
rank; on q and v, rank 1 is near rank 64.

Criterion: on both tasks, the best choice of two or four matrices is not worse than the best single
matrix by more than the standard error on the held-out rows.

Run: `python benchmarks/which_matrices.py`; `--help` lists its flags; with `--quick` it only shows
that it works.
"""

from dataclasses import replace
from statistics import mean
from typing import Any

from beside_peft import SEEDS, parse_arguments, read, write
from real_tasks import TASKS, make_folders, make_job, open_task, train_job

import lorakit
from lorakit.rank_search.candidate import score_adapter
from lorakit.rank_search.evidence import HIGHER_IS_BETTER, choose_rank

BUDGET = 8  # the rank that the query alone takes
CHOICES = ("q", "k", "v", "o", "qk", "qv", "qkvo")
SEEDS_OF = {"sst2": SEEDS[:2], "oz-books": SEEDS}
RANKED, RANKS = ("q", "qv", "qkvo"), (1, 2, 4, 8, 64)
GENTLE = 8.0  # the alpha that gives rank 2 the scale of rank 8


def find_targets(choice: str, model: Any) -> tuple[str, ...]:
    """Return the layers that a choice of letters names."""
    return tuple(name for letter in choice for name in lorakit.select(model, letter))


def find_rank(choice: str, model: Any) -> int:
    """Return the highest rank of all chosen layers that costs no more than the budget's on the
    query.
    """
    a_rank = {
        part: sum(
            sum(place.shape) for place in lorakit.select(model, find_targets(part, model)).values()
        )
        for part in ("q", choice)
    }
    return BUDGET * a_rank["q"] // a_rank[choice]


def run_one(
    task: str, opened_task: tuple[Any, Any, Any], choice: str, rank: int, seed: int, to: Any
) -> dict[str, Any]:
    """Train one choice; return its parameters, its metric, and the standard error of that."""
    loaded, parts, setting = opened_task
    setting = replace(setting, targets=find_targets(choice, loaded.model), rank=rank)
    job = make_job(loaded, parts, setting, to, seed=seed, whole=False)
    train_job(job)
    told = choose_rank(
        {rank: score_adapter(job, job.adapter, parts["test"], TASKS[task].metric)},
        TASKS[task].metric,
    ).points[0]
    size = sum(p.numel() for d in job.adapter.deltas.values() for p in d.parameters())
    row = {
        "task": task,
        "choice": choice,
        "rank": rank,
        "seed": seed,
        "parameters": size,
        "metric": told.metric,
        "error": told.error,
    }
    print(row, flush=True)
    return row


def judge(task: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the criterion of one task."""
    mine = [run for run in runs if run["task"] == task]
    sign = -1 if TASKS[task].metric in HIGHER_IS_BETTER else 1
    means = {c: mean(r["metric"] for r in mine if r["choice"] == c) for c in CHOICES}
    single, several = (
        min((c for c in CHOICES if (len(c) == 1) is alone), key=lambda c: sign * means[c])
        for alone in (True, False)
    )
    gap, error = sign * (means[several] - means[single]), mean(r["error"] for r in mine)
    return {
        "text": f"{task}: the best choice of several matrices is within one standard error of the "
        "best single matrix, or better",
        "met": gap <= error,
        "measured": f"{several} {means[several]:.4f}, {single} {means[single]:.4f}, error "
        f"{error:.4f}",
    }


def measure_tables(new: Any, *, quick: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the runs of table 5, and those of table 6."""
    first, ranked = [], []
    for task, seeds in SEEDS_OF.items():
        given = open_task(task, quick=quick)
        for choice in CHOICES:
            rank = find_rank(choice, given[0].model)
            first += [
                run_one(task, given, choice, rank, seed, new())
                for seed in seeds[: 1 if quick else None]
            ]
    given = open_task("sst2", quick=quick)
    for choice in RANKED:
        known = {
            r["rank"]: r
            for r in first
            if (r["task"], r["choice"], r["seed"]) == ("sst2", choice, 0)
        }
        ranked += [
            known.get(rank) or run_one("sst2", given, choice, rank, 0, new()) for rank in RANKS
        ]
    return first, ranked


def main() -> None:
    asked = parse_arguments(
        __doc__ or "",
        "--gentle: the runs with a smaller alpha alone; the others keep what was measured before",
    )
    before = read("which_matrices") if asked.gentle else {}
    first, ranked = before.get("each", []), before.get("ranked", [])
    with make_folders() as new:
        loaded, parts, setting = open_task("sst2", quick=asked.quick)
        gentle = [
            run_one("sst2", (loaded, parts, replace(setting, alpha=GENTLE)), "qkvo", 2, seed, new())
            for seed in SEEDS_OF["sst2"][: 1 if asked.quick else None]
        ]
        if not asked.gentle:
            first, ranked = measure_tables(new, quick=asked.quick)
    rows = []
    for task in SEEDS_OF:
        for choice in CHOICES:
            mine = [r for r in first if (r["task"], r["choice"]) == (task, choice)]
            rows += [
                {
                    "side": f"{task}: {', '.join(choice)} at rank {r['rank']}",
                    TASKS[task].metric: r["metric"],
                    "parameters": r["parameters"],
                }
                for r in mine
            ]
    rows += [
        {
            "side": f"sst2: q, k, v, o at rank 2, alpha {GENTLE:g}",
            "accuracy": r["metric"],
            "parameters": r["parameters"],
        }
        for r in gentle
    ]
    rows += [
        {
            "side": f"sst2, by rank: {', '.join(r['choice'])} at rank {r['rank']}",
            "accuracy": r["metric"],
            "parameters": r["parameters"],
        }
        for r in ranked
    ]
    write(
        "which_matrices",
        __doc__ or "",
        quick=asked.quick,
        each=first,
        ranked=ranked,
        gentle=gentle,
        runs=rows,
        measures={
            "accuracy": ["accuracy", ".4f"],
            "loss": ["held-out loss", ".4f"],
            "parameters": ["parameters", ",.0f"],
        },
        criteria=[judge(task, first) for task in SEEDS_OF],
    )


if __name__ == "__main__":
    main()
