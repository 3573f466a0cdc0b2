"""Draw docs/pictures/overview.png, the picture of the README, from benchmarks/results/.

It measures nothing: the numbers are those of step.py, whole_job.py and which_rank.py.
"""

import json
from pathlib import Path

from matplotlib.axes import Axes

from lorakit import plots

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "pictures" / "overview.png"
GREY, PEFT, LORAKIT = "0.6", "C0", "C1"


def read_result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def find_run(runs: list[dict], side: str) -> dict:
    for run in runs:
        if run["side"] == side:
            return run
    raise LookupError(f"no run of {side}")


def draw_bars(ax: Axes, values: dict[str, float], colours: list[str], form: str) -> None:
    """Draw horizontal bars, the first at the top, each with its number."""
    names = list(values)[::-1]
    drawn = ax.barh(names, [values[name] for name in names], color=colours[::-1])
    ax.bar_label(drawn, fmt=form, padding=3)
    ax.margins(x=0.18)
    ax.spines[["top", "right"]].set_visible(False)


def draw_speed(ax: Axes) -> None:
    runs = read_result("whole_job")["runs"]
    values = {
        "PEFT with Trainer": find_run(runs, "PEFT with Trainer")["per_second"],
        "lorakit, same settings": find_run(runs, "lorakit")["per_second"],
    }
    draw_bars(ax, values, [PEFT, LORAKIT], "%.0f")
    ax.set_title("A whole training job on a CPU")
    ax.set_xlabel("labelled tokens a CPU second")


def draw_memory(ax: Axes) -> None:
    runs = read_result("step")["runs"]
    values = {
        "frozen model alone": find_run(runs, "floor, dropout 0.05")["saved_mib"],
        "lorakit": find_run(runs, "lorakit, dropout 0.05")["saved_mib"],
        "PEFT": find_run(runs, "PEFT, dropout 0.05")["saved_mib"],
    }
    draw_bars(ax, values, [GREY, LORAKIT, PEFT], "%.0f")
    ax.set_title("Activations kept for the backward pass")
    ax.set_xlabel("MiB, rank 16, dropout 0.05")


def draw_ranks(ax: Axes) -> None:
    searches = {search["task"]: search for search in read_result("which_rank")["searches"]}
    curve = searches["oz-books"]["curve"]
    ranks = [point["rank"] for point in curve]
    ax.fill_between(
        ranks,
        [point["low"] for point in curve],
        [point["high"] for point in curve],
        color=LORAKIT,
        alpha=0.25,
    )
    ax.plot(ranks, [point["metric"] for point in curve], "o-", color=LORAKIT)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ranks, [str(rank) for rank in ranks])
    ax.set_title("Quality by rank, from one run")
    ax.set_xlabel("rank")
    ax.set_ylabel("held-out loss, 95 % interval")
    ax.spines[["top", "right"]].set_visible(False)


def main() -> None:
    figure = plots.new_figure(14, 3)
    panels = figure.subplots(1, 3)
    for draw, ax in zip((draw_speed, draw_memory, draw_ranks), panels, strict=True):
        draw(ax)
    plots.save_figure(figure, PICTURE)
    print(PICTURE.relative_to(ROOT))


if __name__ == "__main__":
    main()
