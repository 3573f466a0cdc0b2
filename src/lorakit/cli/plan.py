"""`lorakit plan`."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorakit.cli import flags
from lorakit.cli.request import require
from lorakit.cli.tables import print_table
from lorakit.plan.config import METHODS, PlanRequest
from lorakit.spec import Spec
from lorakit.text import format_bytes
from lorakit.train.config import TrainSpec

if TYPE_CHECKING:
    from lorakit.plan.estimate import RankRow
    from lorakit.plan.report import Report

RUN = (
    "max_length",
    "batch_size",
    "packing",
    "batch_tokens",
    "accumulate",
    "base_dtype",
    "mixed_precision",
    "gradient_checkpointing",
    "light_checkpointing",
    "optimizer",
    "r_drop",
    "cutoff",
    "epochs",
    "seed",
    "ranks",
    "rank_budget",
)
DEVICE_HEADS = (
    "device",
    "for tensors",
    "full",
    "LoRA",
    "LoRA, 8-bit base",
    "LoRA, 4-bit base",
    "length",
    "rank",
)
RANK_HEADS = ("rank", "trained", "of the base", "file", "in training", "layers past break-even")


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_config(parser, "YAML file of a run, as for `lorakit train`; flags take precedence")
    flags.add_fields(parser, PlanRequest, "the plan")
    flags.add_fields(parser, TrainSpec, "the run", only=RUN)
    flags.add_fields(parser, Spec, "the adapter")


def run(args: argparse.Namespace) -> "Report":
    request_values, run_values, spec_values = flags.read_settings(
        args, PlanRequest, TrainSpec, Spec
    )
    require(request_values, PlanRequest)
    request, spec = PlanRequest(**request_values), Spec(**spec_values)
    settings = {key: value for key, value in run_values.items() if key in RUN}
    # A plan reads and writes nothing of these two, which a run cannot be without.
    run = TrainSpec(**settings, model=request.model, data="not read", output="not written")
    from lorakit.plan.report import make_report

    return make_report(request, run, spec)


def show(result: "Report") -> None:
    print(f"\n{result['summary']}\n")
    print(result["coverage"])
    _show_memory(result)
    if result["devices"]:
        _show_devices(result)
    if result["ranks"]:
        _show_ranks(result["ranks"])
    if result["others"]:
        print_table(["other methods", "trained"], list(result["others"].items()))
    for note in result["notes"]:
        print(f"note: {note}")


def _show_memory(result: "Report") -> None:
    parts = {
        "weights": f"of the base, {result['base_dtype']}",
        "adapters": "with full parameters",
        "gradients": "of the trained parameters",
        "optimizer": "its state, such as the two moments of AdamW",
        "activations": "kept for the backward pass, without logits",
        "logits": "and what the loss computes from them, at most",
        "peak": "at one moment: gradients come while activations go",
    }
    rows = [[part, _bytes(result["memory"][part]), text] for part, text in parts.items()]
    title = (
        f"\nMemory of the largest batch: {result['batch']} sequences of {result['length']:,} "
        f"tokens, on {result['device']}"
    )
    print_table(["part", "memory", ""], rows, title=title)


def _show_devices(result: "Report") -> None:
    print(
        f"The largest batch of {result['length']:,} tokens that fits (0: none); for LoRA at a "
        f"batch of {result['batch']}\nalso the longest sequence and the highest rank"
    )
    rows = []
    for device in result["devices"]:
        methods = device["methods"]
        batches = [methods[method]["batch"] for method in METHODS]
        length, rank = (methods["lora"].get(key, 0) for key in ("length", "rank"))
        rows.append([device["device"], _bytes(device["usable"]), *batches, length, rank])
    print_table(DEVICE_HEADS, rows)


def _show_ranks(ranks: Sequence["RankRow"]) -> None:
    rows = []
    for row in ranks:
        cells = [
            row["rank"],
            row["trainable_parameters"],
            f"{100 * row['share']:>9.4f} %",
            _bytes(row["adapter_bytes"]),
            _bytes(row["training_bytes"]),
            row["past_break_even"],
        ]
        rows.append(cells)
    print_table(RANK_HEADS, rows)


def _bytes(count: int | None) -> str:
    text = "not known" if count is None else format_bytes(count)
    return f"{text:>10}"
