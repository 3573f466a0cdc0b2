"""Does one run that is cut find a sufficient rank?

Setting: sst2 (MiniLM, query and value, 3,000 rows, accuracy on the 872 rows of test.tsv), oz-books
(stories260K, all linear layers, loss on 90 passages) and e2e (stories260K, with the output layer,
loss on 400 references). The search works like `lorakit rank`: it trains once at rank 16, cuts the
adapter by SVD to ranks 1, 2, 4 and 8, trains each cut for a few more steps, and measures it on as
many held-out rows as its cost limit allows. It recommends the smallest rank that these rows show to
be within one standard error of the best. For comparison, each rank is trained by itself with three
seeds, with the same number of steps and the same learning rate, and measured on all held-out rows.
One thread. `from` and `to` are the ends of the 95 % interval of the cut adapter.

Tried first: to recommend the smallest rank that is within one standard error of the best on the
measured rows. On sst2, where 78 rows were measured, this recommended rank 1; trained by itself,
rank 1 is 0.0164 worse than the best rank, whose standard error is 0.0132. With 15 % of the run's
steps for further training and as much for measuring, the search on oz-books took 1.31 times as long
as one run.

Criteria: with one run per rank, the recommended rank is within one standard error of the best (the
standard error on the held-out rows, averaged over seeds). The search takes at most 1.3 times the
CPU time of the one run in it.

Run: `python benchmarks/which_rank.py`; `--help` lists its flags; with `--quick` it only shows that
it works.
"""

import time
from dataclasses import replace
from statistics import mean

from beside_peft import SEEDS, parse_arguments, read, write
from real_tasks import TASKS, make_folders, make_job, open_task, save_picture, train_job

from lorakit import plots
from lorakit.rank_search.candidate import score_adapter
from lorakit.rank_search.config import RankSearchSpec
from lorakit.rank_search.evidence import HIGHER_IS_BETTER, choose_rank
from lorakit.rank_search.truncate import truncate

NAMES = ("sst2", "oz-books", "e2e")
HIGHEST = 16


def search(name: str, new, *, quick: bool) -> dict:
    """Return what one search tells of a task."""
    loaded, parts, setting = open_task(name, quick=quick)
    setting = replace(setting, rank=HIGHEST)
    marks = [time.process_time()]
    # The search says something once its run is through: so the run that it is compared with is its
    # own, a moment before.
    found = truncate(
        make_job(loaded, parts, setting, new()),
        RankSearchSpec(rank=HIGHEST),
        lambda text: marks.append(time.process_time()),
    )
    alone, spent = marks[1] - marks[0], time.process_time() - marks[0]
    points = [
        {"rank": p.rank, "metric": p.metric, "low": p.low, "high": p.high}
        for p in found.choice.points
    ]
    return {
        "task": name,
        "metric": found.metric,
        "curve": points,
        "recommended": found.choice.rank,
        "reason": found.choice.reason,
        "cost": spent / alone,
        "rows": found.facts["rows_measured"],
    }


def train_each_rank(name: str, new, *, quick: bool) -> list[dict]:
    """Return one run a rank and seed, with the standard error of its held-out rows."""
    loaded, parts, setting = open_task(name, quick=quick)
    metric, out = TASKS[name].metric, []
    for rank in RankSearchSpec(rank=HIGHEST).ranks:
        for seed in SEEDS[: 1 if quick else None]:
            job = make_job(
                loaded, parts, replace(setting, rank=rank), new(), seed=seed, whole=False
            )
            train_job(job)
            told = choose_rank(
                {rank: score_adapter(job, job.adapter, parts["test"], metric)}, metric
            ).points[0]
            out.append(
                {
                    "task": name,
                    "rank": rank,
                    "seed": seed,
                    "metric": told.metric,
                    "error": told.error,
                }
            )
            print(out[-1], flush=True)
    return out


def judge(found: dict, runs: list[dict]) -> dict:
    """Return the criterion of one task."""
    mine = [run for run in runs if run["task"] == found["task"]]
    means = {
        rank: mean(r["metric"] for r in mine if r["rank"] == rank)
        for rank in sorted({r["rank"] for r in mine})
    }
    sign = -1 if found["metric"] in HIGHER_IS_BETTER else 1
    best = min(means, key=lambda rank: sign * means[rank])
    error = mean(r["error"] for r in mine if r["rank"] == best)
    gap = sign * (means[found["recommended"]] - means[best])
    return {
        "text": f"{found['task']}: with one run per rank, the recommended rank is within one "
        "standard error of the best",
        "met": gap <= error,
        "measured": f"rank {found['recommended']}: {gap:.4f} behind rank {best}, standard error "
        f"{error:.4f}",
    }


def draw_results(searches: list[dict], runs: list[dict]):
    """Return the curves of all tasks as one figure."""
    figure = plots.new_figure(5.4 * len(searches), 4.2)
    for ax, found in zip(
        figure.subplots(1, len(searches), squeeze=False)[0], searches, strict=True
    ):
        mine = [run for run in runs if run["task"] == found["task"]]
        lines = {
            "one run, cut (95 % interval of its rows)": [
                (p["rank"], p["metric"], p["low"], p["high"]) for p in found["curve"]
            ]
        }
        by_rank = {
            rank: [r["metric"] for r in mine if r["rank"] == rank]
            for rank in sorted({r["rank"] for r in mine})
        }
        lines["one run per rank (three seeds, their range)"] = [
            (r, mean(v), min(v), max(v)) for r, v in by_rank.items()
        ]
        better = "more" if found["metric"] in HIGHER_IS_BETTER else "less"
        plots.draw_curves(
            ax,
            lines,
            title=f"{found['task']}: rank {found['recommended']} is recommended (dotted)",
            x="rank",
            y=f"held-out {found['metric']} ({better} is better)",
            powers=True,
        )
        ax.axvline(found["recommended"], color="0.4", linestyle=":", linewidth=2, zorder=0)
    return figure


def main() -> None:
    alone = (
        f"--{name}: this task alone; the others keep what was measured before" for name in NAMES
    )
    asked = parse_arguments(
        __doc__ or "",
        *alone,
        "--search: search again; one run per rank is kept as it was measured before",
    )
    chosen = [name for name in NAMES if getattr(asked, name.replace("-", "_"))] or list(NAMES)
    before = {} if asked.quick else read("which_rank")
    searches = [s for s in before.get("searches", ()) if s["task"] not in chosen]
    each = [r for r in before.get("honest", ()) if asked.search or r["task"] not in chosen]
    with make_folders() as new:
        for name in chosen:
            searches.append(search(name, new, quick=asked.quick))
            print(searches[-1], flush=True)
            if not asked.search:
                each += train_each_rank(name, new, quick=asked.quick)
    searches.sort(key=lambda s: NAMES.index(s["task"]))
    rows = []
    for found in searches:
        for p in found["curve"]:
            mine = [
                r["metric"] for r in each if (r["task"], r["rank"]) == (found["task"], p["rank"])
            ]
            mark = " (recommended)" if p["rank"] == found["recommended"] else ""
            rows.append(
                {
                    "side": f"{found['task']}, rank {p['rank']}{mark}",
                    "cut": p["metric"],
                    "low": p["low"],
                    "high": p["high"],
                    "honest": mean(mine),
                    "spread": max(mine) - min(mine),
                }
            )
    cost = max(s["cost"] for s in searches)
    write(
        "which_rank",
        __doc__ or "",
        quick=asked.quick,
        searches=searches,
        honest=each,
        runs=rows,
        one_row_a_run=True,
        measures={
            "cut": ["one run, cut", ".4f"],
            "low": ["from", ".4f"],
            "high": ["to", ".4f"],
            "honest": ["one run per rank", ".4f"],
            "spread": ["range over seeds", ".4f"],
        },
        notes=[
            save_picture(draw_results(searches, each), "which_rank", quick=asked.quick),
            *(
                f"{s['task']} ({s['metric']}, {s['rows']} sequences measured, {s['cost']:.2f} "
                f"times one run): {s['reason']}"
                for s in searches
            ),
        ],
        criteria=[
            *(judge(s, each) for s in searches),
            {
                "text": "a search takes at most 1.3 times the CPU time of one run",
                "met": cost <= 1.3,
                "measured": f"at most {cost:.2f}",
            },
        ],
    )


if __name__ == "__main__":
    main()
