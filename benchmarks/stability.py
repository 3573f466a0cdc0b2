"""When is training unstable, and when does it overfit?

Setting: stories260K on oz-books, all linear layers, lorakit's own training loop, one thread. Three
experiments:

- Rank and scale: ranks 2, 8 and 32 with the scale alpha / rank and with alpha / sqrt(rank), which
  are equal at rank 8; one learning rate, 60 steps. The table shows the spread of the three loss
  curves. If it is small, a learning rate that was found at one rank suits the others.
- Instability: learning rates from a tenth of the usual rate to a hundred times this rate, with
  three seeds each, 60 steps, gradients not clipped. Three checks judge each run: the guard of the
  training loop, the detector of jumps, and the check for a loss that ends above its initial value.
  A run whose loss explodes is stopped, and its last good checkpoint is kept. The table shows the
  last loss (the mean over the last five steps).
- Overfitting: 40 passages and 160 steps, so that each passage is read often. The table shows the
  loss on these passages and on held-out ones by rank, without dropout and with dropout 0.2 on the
  input of A.

Criteria: a learning rate of a hundred times the usual one is reported as unstable with every seed,
the usual one with none. The gap between held-out loss and training loss is larger at rank 32 than
at rank 1.

Run: `python benchmarks/stability.py`; `--help` lists its flags; with `--quick` it only shows that
it works.
"""

from dataclasses import replace
from statistics import mean, stdev

from beside_peft import SEEDS, parse_arguments, read, write
from real_tasks import make_folders, make_job, open_task, save_picture, score, train_job

from lorakit import plots
from lorakit.errors import TrainingError
from lorakit.spec import SCALES
from lorakit.train.log import METRICS, read_metrics
from lorakit.train.spikes import find_spikes, has_climbed

TASK, STEPS = "oz-books", 60
RANKS, TIMES = (2, 8, 32), (0.1, 1.0, 10.0, 100.0)
OVER_RANKS, FEW, LONG, DROPOUT = (1, 4, 16, 32), 40, 160, 0.2
OVER = 8  # steps that a drawn curve is averaged over


def measure_rates(new, *, quick: bool) -> list[dict]:
    """Return the loss curve of each rule and rank."""
    loaded, parts, setting = open_task(TASK, quick=quick)
    setting, out = replace(setting, steps=setting.steps if quick else STEPS), []
    for rule in SCALES:
        for rank in RANKS:
            # As strong at rank 8 by either rule, so that the two differ in how they go with the
            # rank alone.
            alpha = 32.0 if rule == "alpha/rank" else 32.0 / 8**0.5
            job = make_job(
                loaded,
                parts,
                replace(setting, rank=rank, alpha=alpha),
                new(),
                rule=rule,
                whole=False,
            )
            out.append(
                {
                    "rule": rule,
                    "rank": rank,
                    "lr": setting.lr,
                    "losses": round_values(train_job(job)),
                }
            )
            print(rule, rank, out[-1]["losses"][-1], flush=True)
    return out


def round_values(losses: list[float]) -> list[float]:
    """Return what the results keep of a curve."""
    return [round(loss, 4) for loss in losses]


def measure_spread(runs: list[dict], rule: str) -> float:
    """Return the mean over steps of the standard deviation over ranks, the first tenth of the steps
    left out.
    """
    curves = [run["losses"] for run in runs if run["rule"] == rule]
    return mean(stdev(at) for at in list(zip(*curves, strict=True))[len(curves[0]) // 10 :])


def measure_instability(new, *, quick: bool) -> list[dict]:
    """Return what became of each learning rate and seed."""
    loaded, parts, setting = open_task(TASK, quick=quick)
    setting, out = replace(setting, steps=setting.steps if quick else STEPS), []
    for times in TIMES:
        for seed in SEEDS[: 1 if quick else None]:
            job, stopped = (
                make_job(
                    loaded,
                    parts,
                    replace(setting, lr=times * setting.lr),
                    new(),
                    seed=seed,
                    clip=0.0,
                ),
                "",
            )
            try:
                train_job(job)
            except TrainingError as error:
                stopped = error.message
            losses = [line["loss"] for line in read_metrics(job.output / METRICS)]
            out.append(
                {
                    "times": times,
                    "lr": job.lr,
                    "seed": seed,
                    "steps": len(losses),
                    "stopped": stopped,
                    "jumps": len(find_spikes(losses)),
                    "last": mean(losses[-5:]) if losses else None,
                    "worse": has_climbed(losses),
                    "losses": round_values(losses),
                }
            )
            print({k: v for k, v in out[-1].items() if k != "losses"}, flush=True)
    return out


def is_noticed(run: dict) -> bool:
    """Tell whether a run was stopped, had jumps, or ended above where it began."""
    return bool(run["stopped"] or run["jumps"] or run["worse"])


def measure_overfitting(new, *, quick: bool) -> list[dict]:
    """Return trained and held-out loss by rank and dropout."""
    loaded, parts, setting = open_task(TASK, quick=quick)
    seen = parts["train"][:FEW]
    setting, out = replace(setting, steps=setting.steps if quick else LONG), []
    for dropout in (0.0, DROPOUT):
        for rank in OVER_RANKS:
            job = make_job(
                loaded,
                {**parts, "train": seen},
                replace(setting, rank=rank),
                new(),
                dropout=dropout,
                whole=False,
            )
            train_job(job)
            held = score(job, parts["test"][:200], "loss")
            out.append(
                {
                    "dropout": dropout,
                    "rank": rank,
                    "train": score(job, seen, "loss"),
                    "held_out": held,
                }
            )
            print(out[-1], flush=True)
    return out


def smooth(losses: list[float]) -> list[tuple[float, float, float, float]]:
    """Return the running mean of a curve as points."""
    means = [mean(losses[max(0, i - OVER + 1) : i + 1]) for i in range(len(losses))]
    return [(i + 1, x, x, x) for i, x in enumerate(means)]


def draw_results(found: dict[str, list[dict]]):
    """Return all three answers as one figure."""
    figure = plots.new_figure(17, 4.4)
    first, second, rates, over = figure.subplots(1, 4)
    y = f"loss, mean of {OVER} steps (less is better)"
    for ax, rule in zip((first, second), SCALES, strict=True):
        lines = {
            f"rank {run['rank']}": smooth(run["losses"])
            for run in found["rates"]
            if run["rule"] == rule
        }
        plots.draw_curves(
            ax,
            lines,
            title=f"one rate, scale {rule}: apart by {measure_spread(found['rates'], rule):.3f}",
            x="step",
            y=y,
        )
    low, high = (
        pick(ax.get_ylim()[i] for ax in (first, second)) for i, pick in ((0, min), (1, max))
    )
    for ax in (first, second):
        ax.set_ylim(low, high)
    lines = {
        f"{times:g} times" + (", stopped here" if run["stopped"] else ""): smooth(run["losses"])
        for times in TIMES
        for run in found["instability"]
        if run["times"] == times and run["seed"] == 0
    }
    plots.draw_curves(rates, lines, title="learning rates, from the usual", x="step", y=y)
    for ax in (first, second, rates):
        for line in ax.get_lines():
            line.set_marker("")
    lines = {
        f"{title}, dropout {d:g}": [
            (r["rank"], r[key], r[key], r[key]) for r in found["overfitting"] if r["dropout"] == d
        ]
        for d in (0.0, DROPOUT)
        for key, title in (("train", "read often"), ("held_out", "held out"))
    }
    plots.draw_curves(
        over,
        lines,
        title=f"overfitting on {FEW} passages",
        x="rank",
        y="loss (less is better)",
        powers=True,
    )
    for number, line in enumerate(over.get_lines()[:4]):
        line.set(color=f"C{number // 2}", linestyle="-" if number % 2 else "--")
    over.legend(fontsize=8, handlelength=3.5)
    return figure


PARTS = {
    "rates": measure_rates,
    "instability": measure_instability,
    "overfitting": measure_overfitting,
}


def main() -> None:
    alone = (
        f"--{part}: this part alone; the others keep what was measured before" for part in PARTS
    )
    asked = parse_arguments(__doc__ or "", *alone)
    chosen = [part for part in PARTS if getattr(asked, part)] or list(PARTS)
    before = {} if asked.quick else read("stability")
    found = {part: before.get(part, []) for part in PARTS}
    with make_folders() as new:
        for part in chosen:
            found[part] = PARTS[part](new, quick=asked.quick)
    if not all(found.values()):
        raise SystemExit("The other parts were never measured: run without a part first.")
    spreads = {rule: measure_spread(found["rates"], rule) for rule in SCALES}
    noticed = {
        times: [is_noticed(r) for r in found["instability"] if r["times"] == times]
        for times in TIMES
    }
    gaps = {(r["dropout"], r["rank"]): r["held_out"] - r["train"] for r in found["overfitting"]}
    ranks = ", ".join(map(str, RANKS))
    rows = [
        {"side": f"scale {rule}: spread over ranks {ranks}", "loss": value}
        for rule, value in spreads.items()
    ]
    for times in TIMES:
        mine = [r for r in found["instability"] if r["times"] == times]
        ends = [r["last"] for r in mine if r["last"] is not None]
        rows.append(
            {
                "side": f"{times:g} times the usual rate",
                **({"loss": mean(ends)} if ends else {}),
                "stopped": sum(bool(r["stopped"]) for r in mine),
                "jumps": sum(r["jumps"] for r in mine),
            }
        )
    rows += [
        {
            "side": f"rank {r['rank']}, dropout {r['dropout']:g}",
            "loss": r["train"],
            "held_out": r["held_out"],
            "gap": r["held_out"] - r["train"],
        }
        for r in found["overfitting"]
    ]
    write(
        "stability",
        __doc__ or "",
        quick=asked.quick,
        **found,
        runs=rows,
        measures={
            "loss": ["spread, last loss or training loss", ".4f"],
            "held_out": ["held-out loss", ".4f"],
            "gap": ["gap", ".4f"],
            "stopped": ["runs stopped", ".0f"],
            "jumps": ["jumps", ".0f"],
        },
        notes=[save_picture(draw_results(found), "stability", quick=asked.quick)],
        criteria=[
            {
                "text": "a hundred times the usual learning rate is reported as unstable with "
                "every seed, the usual one with none",
                "met": all(noticed[100.0]) and not any(noticed[1.0]),
                "measured": ", ".join(
                    f"{t:g} times: {sum(n)} of {len(n)}" for t, n in noticed.items()
                ),
            },
            {
                "text": "rank 32 overfits more than rank 1",
                "met": gaps[0.0, 32] > gaps[0.0, 1],
                "measured": f"gap {gaps[0.0, 1]:.3f} at rank 1, {gaps[0.0, 32]:.3f} at rank 32, "
                f"{gaps[DROPOUT, 32]:.3f} there with dropout",
            },
        ],
    )


if __name__ == "__main__":
    main()
