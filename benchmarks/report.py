"""Write docs/results.md from benchmarks/results/*.json: every number on the page is in one of these
files.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from markdown import format_table

SHOWN = ("floor", "PEFT", "lorakit")  # of benchmarks/step.py
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
ORDER = (
    "parity",
    "sst2",
    "sst2_full",
    "oz_books",
    "e2e",
    "resnet20",
    "merged_latency",
    "step",
    "step_cuda",
    "plan_time",
    "plan_before_run",
    "checkpointing",
    "compile_time",
    "attach",
    "whole_job",
    "large_data",
    "head",
    "base_dtype",
    "spectra",
    "combine_beside_peft",
    "extract",
    "nested_or_cut",
    "which_rank",
    "which_matrices",
    "stability",
    "transfer",
    "rows",
    "shared_and_specific",
    "variants_oz_books",
    "variants_sst2",
    "rank_schedules",
    "fuzz",
)
OPENING = """# Results

![Tokens a second, activations kept, and quality by rank](pictures/overview.png)

On a CPU, `lorakit train` trains {speed:.1f} times as many labelled tokens per second as PEFT with
transformers' Trainer. With dropout, a training step of lorakit keeps {memory:.0%} of the
activations that a step of PEFT keeps. One run of `lorakit rank` measures the quality at every rank
in at most {search:.2f} times the time of one training run.

Each section below is one benchmark: its setting, its criterion, what was predicted before the
measurement, and its figures. [The last section](#criteria) lists all criteria, including those that
were not met.

Quality is measured on real models and real data; speed and memory are also measured on models with
random weights, and then the section says so. If PEFT has the same function, it is measured too.
Then both sides run in the same process, on the same batches in the same order, with the same
learning rates. A figure with ± is a mean and the sample standard deviation over seeds, unless the
section says otherwise. CPU seconds count only the time of the measured process, so other work on
the machine has little effect on them.

`benchmarks/report.py` writes this page from `benchmarks/results/`, which contains the figures of
every run. `make bench` measures speed and memory again, `make bench FULL=1` everything.
"""


def write() -> None:
    """Write the page from all results that there are."""
    import json

    folder = ROOT / "benchmarks" / "results"
    found = {
        name: json.loads(path.read_text("utf-8"))
        for name in ORDER
        if (path := folder / f"{name}.json").is_file()
    }
    PAGE.parent.mkdir(exist_ok=True)
    parts = [format_section(name, part) for name, part in found.items()]
    PAGE.write_text(
        "\n".join([format_opening(found), *parts, "## Criteria\n", format_summary(found)]), "utf-8"
    )
    write_claims(PAGE.parent / "claims.md", found)
    if "curves" in found.get("step", {}):
        draw_growth(found["step"])
    for page in PAGE.parent.glob("*.md"):
        if "<!-- figures:" in page.read_text("utf-8"):
            fill(page, found)


def format_opening(found: dict[str, Any]) -> str:
    """Return the head of the page, with the figures of its picture."""
    jobs = {run["side"]: run for run in found["whole_job"]["runs"]}
    steps = {run["side"]: run for run in found["step"]["runs"]}
    kept = steps["lorakit, dropout 0.05"]["saved_mib"] / steps["PEFT, dropout 0.05"]["saved_mib"]
    costs = [search["cost"] for search in found["which_rank"]["searches"]]
    return OPENING.format(speed=jobs["lorakit"]["ratio"], memory=kept, search=max(costs))


def write_claims(page: Path, found: dict[str, Any]) -> None:
    """Write the tables of claims between the marks of their page."""
    if not page.is_file():
        return
    from claims import format_tables

    start, end = "<!-- claims -->\n", "<!-- end of claims -->"
    before, _, rest = page.read_text("utf-8").partition(start)
    page.write_text(
        f"{before}{start}\n{format_tables(found)}\n{end}{rest.partition(end)[2]}", "utf-8"
    )


def fill(page: Path, found: dict[str, Any]) -> None:
    """Write the tables that a page of the docs asks for, each between its marks."""
    text = page.read_text("utf-8")
    for names in re.findall(r"<!-- figures: (.*?) -->", text):
        tables = [
            PARTS[part](found[name])
            for name, _, part in (word.partition(".") for word in names.split())
            if name in found
        ]
        start, end = f"<!-- figures: {names} -->\n", "<!-- end of figures -->"
        before, _, rest = text.partition(start)
        text = before + start + "\n" + "\n".join(tables) + "\n" + end + rest.partition(end)[2]
    page.write_text(text, "utf-8")


def format_summary(found: dict[str, Any]) -> str:
    """Return the table of criteria."""
    rows = [
        [name.replace("_", " "), *row]
        for name, part in found.items()
        for row in list_criteria(part)
    ]
    return format_table(["benchmark", "criterion", "measured", ""], rows, "llrl")


def list_criteria(part: dict[str, Any]) -> list[list[str]]:
    """Return the text, the figure and the verdict of each criterion."""
    return [
        [c["text"], c["measured"], "met" if c["met"] else "**not met**"]
        for c in part.get("criteria", ())
    ]


def split_doc(doc: str) -> tuple[str, str]:
    """Return the question of a benchmark, in one line, and its text without the command."""
    question, _, text = doc.strip().partition("\n\n")
    return " ".join(question.split()), text.partition("Run: ")[0].strip()


def format_section(name: str, part: dict[str, Any]) -> str:
    """Return one benchmark: its docstring, settings, table, and what else it shows."""
    title, text = split_doc(part["doc"])
    lines = [f"## {title}", "", text, ""]
    if "setting" in part:
        s = part["setting"]
        lines += [
            f"Learning rate {s['lr']:g} ({s['schedule']}, warm-up {s['warmup']:g}), {s['steps']} "
            "steps of "
            f"{s['batch_size']} sequences of at most {s['max_length']} tokens, rank {s['rank']}, "
            f"alpha {s['alpha']:g}, "
            f"gradients clipped at {s['clip']:g}.",
            "",
        ]
    if part.get("tuned"):
        keys = list(part["tuned"][0])
        rows = [[f"{v:.4g}" for v in row.values()] for row in part["tuned"]]
        lines += [
            "Learning rates that were tried, on the data for choosing:",
            "",
            format_table(keys, rows, "r" * len(keys)),
        ]
    if "runs" in part:
        lines.append(format_runs(part))
    lines += [f"{note}\n" for note in part.get("notes", ())]
    script = name.removesuffix("_full").removesuffix("_cuda")
    lines += [f"Measured by `benchmarks/{script}.py` on {format_machine(part)}", ""]
    return "\n".join(lines)


def format_machine(part: dict[str, Any]) -> str:
    """Return when and on what a benchmark ran."""
    m = part["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    extra = ", ".join(
        f"{'' if m[k] else 'no '}{label}"
        for k, label in (("avx512", "AVX-512"), ("avx512_bf16", "AVX-512 BF16"), ("amx", "AMX"))
    )
    gpu = f"{part['gpu']}; " if part.get("gpu") else ""
    return (
        f"{m['date']}: {gpu}{m['cpu']}, {m['cores']} cores ({extra}), "
        f"{m['threads']} thread{'s' if m['threads'] != 1 else ''}; {versions}."
    )


def format_settings(part: dict[str, Any]) -> str:
    """Return the models of benchmarks/step.py: their sizes, input and adapter."""
    keys = ("blocks", "width", "inner", "heads", "vocabulary", "rows", "tokens", "rank")
    models = {r["model"]: r for r in part["runs"] if r["variant"] == "lorakit"}
    rows = [
        [name, *(f"{r[k]:,}" for k in keys), r["dtype"], f"{r['trained']:,}", str(r["rounds"])]
        for name, r in models.items()
    ]
    return format_table(["", *keys, "base", "values trained", "rounds"], rows)


def format_growth(part: dict[str, Any]) -> str:
    """Return the curves of benchmarks/step.py, one table a size."""
    out = []
    for what, runs in part["curves"].items():
        rows = []
        for at in dict.fromkeys(r[what] for r in runs):
            by = {r["variant"]: r for r in runs if r[what] == at}
            rows.append(
                [
                    f"{at:,}",
                    *(f"{by[v]['min']:.3f}" for v in SHOWN),
                    f"{by['lorakit']['of_floor']:.2f}",
                    f"{by['lorakit']['of_peft']:.2f}",
                    *(f"{by[v]['saved_mib']:.0f}" for v in SHOWN),
                    *(f"{by[v]['peak_mib']:.0f}" for v in SHOWN),
                ]
            )
        heads = [
            what,
            *(f"{v}, CPU seconds" for v in SHOWN),
            "lorakit / floor",
            "lorakit / PEFT",
            *(f"{v}, saved MiB" for v in SHOWN),
            *(f"{v}, peak MiB" for v in SHOWN),
        ]
        out.append(format_table(heads, rows, "r" * len(heads)))
    return "\n".join(out)


def draw_growth(part: dict[str, Any]) -> None:
    """Draw the curves of benchmarks/step.py: time and saved activations by rank and by length."""
    from lorakit import plots

    picture = plots.new_figure(10, 7)
    grid = picture.subplots(2, 2)
    for column, (what, runs) in enumerate(part["curves"].items()):
        for row, (key, label) in enumerate(
            (("min", "CPU seconds a step"), ("saved_mib", "saved activations, MiB"))
        ):
            lines = {
                v: [(r[what], r[key], r[key], r[key]) for r in runs if r["variant"] == v]
                for v in SHOWN
            }
            plots.draw_curves(
                grid[row][column], lines, title=f"{label}, by {what}", x=what, y=label, powers=True
            )
            grid[row][column].set_ylim(bottom=0)
    (PAGE.parent / "pictures").mkdir(exist_ok=True)
    plots.save_figure(picture, PAGE.parent / "pictures" / "step.png")


def format_runs(part: dict[str, Any]) -> str:
    """Return mean ± spread by side, or one line a run."""
    measures, runs = part["measures"], part["runs"]
    heads = ["", *(title for title, _ in measures.values())]
    if part.get("one_row_a_run"):
        return format_table(
            heads,
            [
                [r["side"], *(format_number(r[k], f) for k, (_, f) in measures.items())]
                for r in runs
            ],
        )
    rows = []
    for side in dict.fromkeys(r["side"] for r in runs):
        mine = [r for r in runs if r["side"] == side]
        cells = [format_figure([r[k] for r in mine if k in r], f) for k, (_, f) in measures.items()]
        rows.append(
            [
                {"peft": "PEFT"}.get(side, side)
                + (f" ({len(mine)} seeds)" if len(mine) > 1 else ""),
                *cells,
            ]
        )
    return format_table(heads, rows)


def format_short(part: dict[str, Any]) -> str:
    """Return the tables of a benchmark that was not written: its figures and its criteria."""
    return "\n".join(
        [format_runs(part), *([PARTS["targets"](part)] if part.get("criteria") else [])]
    )


def format_number(value: float | None, form: str) -> str:
    """Return a number; nothing where there is none."""
    return "" if value is None or value != value else format(value, form)


def format_figure(numbers: Sequence[float], form: str) -> str:
    """Return mean ± sample standard deviation; the mean alone where nothing varies."""
    if not numbers:
        return ""
    if len(set(numbers)) == 1:
        return format(numbers[0], form)
    return f"{format(mean(numbers), form)} ± {format(stdev(numbers), form)}"


PARTS = {  # after the name in a mark, as in `figures: step.targets`
    "": lambda part: f"**{split_doc(part['doc'])[0]}**\n\n{format_runs(part)}",
    "runs": format_runs,
    "settings": format_settings,
    "growth": format_growth,
    "targets": lambda part: format_table(["target", "measured", ""], list_criteria(part), "lrl"),
    "machine": lambda part: "\n".join(
        [f"Measured on {format_machine(part)}", *(f"{note}" for note in part.get("notes", ())), ""]
    ),
}

if __name__ == "__main__":
    write()
