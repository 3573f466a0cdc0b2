"""`lorakit train`."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lorakit.cli import flags
from lorakit.cli.tables import print_metrics
from lorakit.spec import Spec
from lorakit.text import format_bytes, format_duration, line_width, plural, print_message
from lorakit.train.config import TrainSpec

if TYPE_CHECKING:
    from lorakit.plots import LossPoint
    from lorakit.train.dry_run import DryRun
    from lorakit.train.report import RunReport

SHOWN_JUMPS = 5
CURVE_WIDTH = 80


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_config(parser)
    flags.add_fields(parser, TrainSpec, "the run")
    flags.add_fields(parser, Spec, "the adapter")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        default=argparse.SUPPRESS,
        help="do everything up to the first step, say what would be run, and write nothing",
    )
    parser.add_argument(
        "--plot",
        metavar="TEXT",
        default=argparse.SUPPRESS,
        help="draw the losses as a picture into this file (.png, .svg, .pdf)",
    )


def run(args: argparse.Namespace) -> "RunReport | DryRun":
    is_dry_run = args.__dict__.pop("dry_run", False)
    plot: str | None = args.__dict__.get("plot")
    run_values, spec_values = flags.read_settings(args, TrainSpec, Spec)
    settings, spec = flags.make_both((TrainSpec, run_values), (Spec, spec_values))
    from lorakit import plots
    from lorakit.train.dry_run import try_run
    from lorakit.train.origin import check_given
    from lorakit.train.run import train_adapter

    if settings.adapter:
        check_given(settings.adapter, spec, spec_values)
    if plot:
        plots.check_path(plot)
    if is_dry_run:
        return try_run(settings, spec, say=print_message)
    report = train_adapter(settings, spec, say=print_message)
    if plot:
        title = f"{report['model_name']}, rank {report['spec']['rank']}"
        figure = plots.draw_losses(*_read_losses(report), title=title)
        report["plot"] = str(plots.save_figure(figure, plot))
    return report


def _read_losses(report: "RunReport") -> tuple[list["LossPoint"], list["LossPoint"]]:
    from lorakit.train.log import METRICS, read_metrics, split_losses

    return split_losses(read_metrics(Path(report["output"]) / METRICS))


def show(report: "RunReport | DryRun") -> None:
    if "longest_batch" in report:
        _show_dry_run(cast("DryRun", report))
    else:
        _show_run(cast("RunReport", report))


def _show_dry_run(found: "DryRun") -> None:
    rows, length = found["longest_batch"]
    seconds = format_duration(found["longest_batch_seconds"])
    passes = found["settings"]["accumulate"]
    print(
        f"\nThe run would take {plural(found['steps'], 'step')} of {plural(passes, 'batch')}, "
        f"with a peak learning rate of {found['lr']:g}, on {found['device']}."
    )
    if found["first_step"]:
        print(f"It would go on after step {found['first_step']}.")
    print(
        f"The longest batch, {plural(rows, 'sequence')} of {plural(length, 'token')}, took "
        f"{seconds} forward and backward."
    )
    if found["rows_held_out"]:
        print(
            f"It would evaluate every {plural(found['eval_every'], 'step')}, on up to "
            f"{plural(found['rows_evaluated'], 'held-out sequence')}."
        )
    print(f"It would write to {found['output']}. Nothing was written: this was a dry run.")


def _show_run(report: "RunReport") -> None:
    _show_steps(report)
    _show_curve(report)
    _show_loss(report)
    if report["after"]:
        print_metrics({"before": report["before"] or {}, "after": report["after"]})
    else:
        print(
            "Nothing was held out, so nothing was measured: give --eval-data, or a larger "
            "--eval-fraction."
        )
    show_files(report)
    show_next(report)


def _show_steps(report: "RunReport") -> None:
    steps = f"{report['steps']} steps"
    if report["best_step"] not in (None, report["steps"]):
        steps += f", best at step {report['best_step']}"
    if report["stopped_early"]:
        steps += ", stopped early"
    rate = f"{report['tokens_per_second']:,.0f} tokens/s"
    peak = format_bytes(report["peak_memory_bytes"])
    total, of_steps = (format_duration(report[key]) for key in ("wall_seconds", "seconds"))
    print(f"\n{steps}, {total} ({of_steps} in steps), {rate}, {peak} peak")
    first, last = report["loss_of_first_steps"], report["loss_of_last_steps"]
    if first is not None and last is not None:
        count = plural(report["loss_steps"], "step")
        print(f"mean loss of the first {count} {first:.4f}, of the last {count} {last:.4f}")


def _show_curve(report: "RunReport") -> None:
    from lorakit import plots

    width = min(line_width(sys.stdout) or CURVE_WIDTH, CURVE_WIDTH)
    curve = plots.draw_text_curve(*_read_losses(report), width=width)
    if curve:
        print(f"\n{curve}")


def _show_loss(report: "RunReport") -> None:
    jumps = report["loss_spikes"]
    if jumps:
        shown = [str(step) for step in jumps[:SHOWN_JUMPS]]
        if len(jumps) > SHOWN_JUMPS:
            shown.append("…")
        print(
            f"note: the loss jumped at {plural(len(jumps), 'step')} ({', '.join(shown)}); many "
            "jumps mean that --lr is too high"
        )
    if report["loss_climbed"]:
        print("note: the loss ended above its start: --lr is too high, or --clip is 0")


def show_files(report: "RunReport") -> None:
    """Print the files that a run has written."""
    folder, trained = report["output"], report["trainable_parameters"]
    share = 100 * trained / report["total_parameters"]
    print(
        f"Adapter: {folder}/adapter_model.safetensors ({trained:,} trained parameters, "
        f"{share:.2f} % of the model)"
    )
    print(
        f"Report:  {folder}/report.json   each step: {folder}/metrics.jsonl   "
        f"card: {folder}/README.md"
    )
    if "plot" in report:
        print(f"Picture: {report['plot']}")
    print()


def show_next(report: "RunReport") -> None:
    """Print the commands that a user would type next, quoted for a shell."""
    settings = report["settings"]
    model, adapter = shlex.quote(report["model"]), shlex.quote(report["output"])
    sources = settings["eval_data"] or settings["data"]
    data = shlex.join([sources] if isinstance(sources, str) else sources)
    merged = shlex.quote(f"{report['output']}-merged")
    columns = " ".join(shlex.quote(column) for column in settings["columns"])
    named = f" --columns {columns}" if columns else ""
    print("Next:")
    if report["task"] in ("causal-lm", "preference"):
        print(f"  lorakit chat --model {model} --adapter {adapter}")
    is_builtin = data.startswith("builtin:")
    if report["rows_held_out"] and not settings["eval_data"] and not is_builtin:
        print("  # most of these rows were trained on; the table above is of the held-out ones")
    print(f"  lorakit eval --model {model} --adapter {adapter} --data {data}{named}")
    print(f"  lorakit inspect {adapter}")
    print(f"  lorakit merge --model {model} --adapter {adapter} --output {merged}")
