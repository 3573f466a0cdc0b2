"""`lorakit plan`."""

import argparse
from typing import Any

from lorakit.cli import flags
from lorakit.cli.evaluate import needed
from lorakit.plan.config import PlanRequest
from lorakit.spec import Spec
from lorakit.text import format_bytes
from lorakit.train.config import TrainSpec

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
    "epochs",
    "seed",
    "ranks",
    "rank_budget",
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="YAML file of a run, as `lorakit train` takes it; flags win",
    )
    flags.add_fields(parser, PlanRequest, "the plan")
    flags.add_fields(parser, TrainSpec, "the run", only=RUN)
    flags.add_fields(parser, Spec, "the adapter")


def main(args: argparse.Namespace) -> dict[str, Any]:
    asked_values, run_values, spec_values = flags.values(args, PlanRequest, TrainSpec, Spec)
    needed(asked_values, "model")
    asked, spec = PlanRequest(**asked_values), Spec(**spec_values)
    run_values = {k: v for k, v in run_values.items() if k in RUN}
    run = TrainSpec(
        **{**run_values, "model": asked.model, "data": "not read", "output": "not written"}
    )
    from lorakit.plan.report import make_report

    return make_report(asked, run, spec)


def show(result: dict[str, Any]) -> None:
    from lorakit.cli import show as shown

    def sized(count: int | None) -> str:
        return f"{'not known' if count is None else format_bytes(count):>10}"

    print(f"\n{result['summary']}\n")
    print(result["coverage"])
    parts = {
        "weights": f"of the base, {result['base_dtype']}",
        "adapters": "and what is trained whole beside them",
        "gradients": "of what trains",
        "optimizer": "AdamW's two moments",
        "activations": "kept for the backward pass, without logits",
        "logits": "with what the loss makes of them, at most",
        "peak": "at the moment when it is most: gradients come while activations go",
    }
    title = f"\nMemory of the largest batch: {result['batch']} sequences of {result['length']:,} tokens, on {result['device']}"
    shown.table(
        ["part", "memory", ""],
        [[k, sized(result["memory"][k]), text] for k, text in parts.items()],
        title=title,
    )
    if result["devices"]:
        print(
            f"What fits: the largest batch of {result['length']:,} tokens (0: none), and for LoRA at a batch of "
            f"{result['batch']} the longest sequence\nand the highest rank"
        )
        rows = []
        for d in result["devices"]:
            batches = [d["methods"][m]["batch"] for m in ("full", "lora", "lora-8bit", "lora-4bit")]
            rows.append(
                [
                    d["device"],
                    sized(d["usable"]),
                    *batches,
                    *(d["methods"]["lora"].get(k, 0) for k in ("length", "rank")),
                ]
            )
        shown.table(
            [
                "device",
                "for tensors",
                "full",
                "LoRA",
                "LoRA, 8-bit base",
                "LoRA, 4-bit base",
                "length",
                "rank",
            ],
            rows,
        )
    if result["ranks"]:
        rows = [
            [
                r["rank"],
                r["trainable_parameters"],
                f"{100 * r['share']:>9.4f} %",
                sized(r["adapter_bytes"]),
                sized(r["training_bytes"]),
                r["past_break_even"],
            ]
            for r in result["ranks"]
        ]
        shown.table(
            ["rank", "trained", "of the base", "file", "in training", "layers past break-even"],
            rows,
        )
    if result["others"]:
        shown.table(["other methods", "trained"], list(result["others"].items()))
    for note in result["notes"]:
        print(f"note: {note}")
