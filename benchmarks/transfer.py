"""How well does an adapter work on other tasks?

Setting: stories260K on four tasks: prose (oz-books, tinyshakespeare) and sentences from attributes
(e2e, dart). All adapters have rank 8 and the same layers, including the output layer. Columns are
the tasks that are tested, on held-out rows.

- "adapter of": the adapter of this task, without further training.
- "40 steps from": the column's task is trained for a third of the usual steps, from a new adapter,
  or from the adapter of another task at half the learning rate.

The figures are losses on all labelled tokens; one seed, one thread. The share at the end is the
gain from another task's adapter relative to the gain from the task's own adapter: 1 is the same
gain, below 0 is harm.

Criterion: on each task, its own adapter is the best.

Run: `python benchmarks/transfer.py`; `--help` lists its flags; with `--quick` it only shows that it
works.
"""

from dataclasses import replace
from statistics import mean

from beside_peft import parse_arguments, write
from e2e import TARGETS
from real_tasks import make_folders, make_job, open_task, save_picture, score, train_job

from lorakit import detach, plots

NAMES, HELD_OUT = ("oz-books", "tinyshakespeare", "e2e", "dart"), 150
STEPS, FEWER = 120, 40


def draw_results(runs: list[dict]):
    """Return, from the rows of the results, how well each adapter serves each task, and how good a
    start it is.
    """
    found = {run["side"]: run for run in runs}
    base, fresh = found["the base alone"], found[f"{FEWER} steps from a new adapter"]
    own = {i: found[f"adapter of {i}"] for i in NAMES}
    figure = plots.new_figure(15, 4.8)
    left, right = figure.subplots(1, 2)
    shares = [[(base[j] - own[i][j]) / (base[j] - own[j][j]) for j in NAMES] for i in NAMES]
    plots.draw_heatmap(
        left,
        shares,
        rows=NAMES,
        columns=NAMES,
        form=".2f",
        low=-1,
        high=1,
        title="as it is: share of what the own adapter gains (1 all, 0 nothing, below 0 harm)",
    )
    gains = [
        [
            fresh[j] - found[f"{FEWER} steps from the adapter of {i}"][j] if i != j else None
            for j in NAMES
        ]
        for i in NAMES
    ]
    plots.draw_heatmap(
        right,
        gains,
        rows=NAMES,
        columns=NAMES,
        form=".2f",
        low=None,
        title=f"as a start: loss saved after {FEWER} steps, beside a start from nothing (below 0 "
        "harm)",
    )
    for ax in (left, right):
        ax.set(
            ylabel="adapter of",
            xlabel="tested on" if ax is left else "trained on for, and tested on",
        )
    return figure


def main() -> None:
    asked = parse_arguments(__doc__ or "")
    tasks = {name: open_task(name, quick=asked.quick) for name in NAMES}
    rank, alpha = 8, 32.0
    base, own, tested, started, fresh = {}, {}, {}, {}, {}

    def job(name: str, new, *, steps: int, start=None):
        loaded, parts, setting = tasks[name]
        lr = setting.lr if start is None else setting.lr / 2
        setting = replace(
            setting,
            targets=TARGETS,
            rank=rank,
            alpha=alpha,
            lr=lr,
            steps=2 if asked.quick else steps,
        )
        return make_job(loaded, parts, setting, new(), start=start, whole=False)

    def loss(of, name: str) -> float:
        return score(of, tasks[name][1]["test"][:HELD_OUT], "loss")

    with make_folders() as new:
        for name in NAMES:
            learned = job(name, new, steps=STEPS)
            base[name] = loss(learned, name)
            train_job(learned)
            own[name] = learned.adapter
            for other in NAMES:
                tested[name, other] = loss(learned, other)
            few = job(name, new, steps=FEWER)
            train_job(few)
            fresh[name] = loss(few, name)
            print(name, base[name], {o: tested[name, o] for o in NAMES}, fresh[name], flush=True)
            detach(learned.model)
        for name in NAMES:
            for other in NAMES:
                if name != other:
                    going_on = job(other, new, steps=FEWER, start=own[name])
                    train_job(going_on)
                    started[name, other] = loss(going_on, other)
            print(name, {o: started.get((name, o)) for o in NAMES}, flush=True)
    shares = {
        (i, j): (base[j] - tested[i, j]) / (base[j] - tested[j, j]) for i in NAMES for j in NAMES
    }
    rows = [{"side": "the base alone", **{j: base[j] for j in NAMES}}]
    rows += [{"side": f"adapter of {i}", **{j: tested[i, j] for j in NAMES}} for i in NAMES]
    rows += [{"side": f"{FEWER} steps from a new adapter", **{j: fresh[j] for j in NAMES}}]
    rows += [
        {
            "side": f"{FEWER} steps from the adapter of {i}",
            **{j: started[i, j] for j in NAMES if i != j},
        }
        for i in NAMES
    ]
    best = {j: min(NAMES, key=lambda i: tested[i, j]) for j in NAMES}
    near = mean(shares[i, j] for i, j in (NAMES[:2], NAMES[1::-1], NAMES[2:], NAMES[:1:-1]))
    far = mean(shares[pair] for i in NAMES[:2] for j in NAMES[2:] for pair in ((i, j), (j, i)))
    write(
        "transfer",
        __doc__ or "",
        quick=asked.quick,
        runs=rows,
        share={"near": near, "far": far},
        measures={name: [name, ".3f"] for name in NAMES},
        notes=[
            save_picture(draw_results(rows), "transfer", quick=asked.quick),
            "Gain from another task's adapter as a share of the gain from the task's own: "
            f"{near:.2f} between tasks of the same kind, {far:.2f} between tasks of different "
            "kinds.",
        ],
        criteria=[
            {
                "text": "on each task, its own adapter is the best",
                "met": all(i == j for j, i in best.items()),
                "measured": ", ".join(f"{j}: {i}" for j, i in best.items()),
            }
        ],
    )


if __name__ == "__main__":
    main()
