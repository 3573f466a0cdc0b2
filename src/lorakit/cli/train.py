"""`lorakit train`."""

import argparse
import shlex
import sys
from typing import Any

from lorakit.cli import flags
from lorakit.spec import Spec
from lorakit.text import format_bytes, plural
from lorakit.train.config import TrainSpec


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="YAML file with any of these settings, and `overrides`; flags win",
    )
    flags.add_fields(parser, TrainSpec, "the run")
    flags.add_fields(parser, Spec, "the adapter")


def main(args: argparse.Namespace) -> dict[str, Any]:
    run_values, spec_values = flags.values(args, TrainSpec, Spec)
    settings, spec = TrainSpec(**run_values), Spec(**spec_values)
    from lorakit.train.run import train_adapter

    return train_adapter(settings, spec, say=lambda text: print(text, file=sys.stderr))


def show_next(report: dict[str, Any]) -> None:
    """Print the commands that a user would type next, quoted for a shell."""
    data = report["settings"]["eval_data"] or report["settings"]["data"]
    model, data, out, merged = (
        shlex.quote(word)
        for word in (report["model"], data, report["output"], f"{report['output']}-merged")
    )
    columns = " ".join(shlex.quote(column) for column in report["settings"]["columns"])
    print("Next:")
    if (
        report["rows_held_out"]
        and not report["settings"]["eval_data"]
        and not data.startswith("builtin:")
    ):
        print(
            "  # these rows are mostly those it was trained on; the table above is of the held-out ones"
        )
    print(
        f"  lorakit eval --model {model} --adapter {out} --data {data}{f' --columns {columns}' if columns else ''}"
    )
    print(f"  lorakit inspect {out}")
    print(f"  lorakit merge --model {model} --adapter {out} --output {merged}")


def show_files(report: dict[str, Any]) -> None:
    out = report["output"]
    print(
        f"Adapter: {out}/adapter_model.safetensors ({report['trainable_parameters']:,} trained parameters, "
        f"{100 * report['trainable_parameters'] / report['total_parameters']:.2f} % of the model)"
    )
    print(f"Report:  {out}/report.json   each step: {out}/metrics.jsonl   card: {out}/README.md\n")


def show(report: dict[str, Any]) -> None:
    from lorakit.cli import show as shown

    best = (
        f", best at step {report['best_step']}"
        if report["best_step"] not in (None, report["steps"])
        else ""
    )
    early = ", stopped early" if report["stopped_early"] else ""
    rate, peak = (
        f"{report['tokens_per_second']:,.0f} tokens/s",
        format_bytes(report["peak_memory_bytes"]),
    )
    print(
        f"\n{report['steps']} steps{best}{early}, {report['seconds']:.1f} s, {rate}, {peak} peak, "
        f"loss {report['loss_first']:.4f} -> {report['loss_last']:.4f}"
    )
    if jumps := report["loss_spikes"]:
        print(
            f"note: the loss jumped at {plural(len(jumps), 'step')} ({', '.join(map(str, jumps[:5]))}"
            f"{', …' if len(jumps) > 5 else ''}); often, and --lr is too high"
        )
    if report["loss_climbed"]:
        print("note: the loss ended above where it began: --lr is too high, or --clip is 0")
    if report["after"]:
        shown.measures(report["before"], report["after"])
    else:
        print(
            "Nothing was held out, so nothing was measured: give --eval-data, or a larger --eval-fraction."
        )
    show_files(report)
    show_next(report)
