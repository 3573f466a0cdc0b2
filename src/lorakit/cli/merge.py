"""`lorakit merge`."""

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from lorakit.cli import flags
from lorakit.cli.evaluate import needed
from lorakit.spec import option
from lorakit.text import format_bytes


@dataclass(frozen=True, kw_only=True)
class Merging:
    """What is merged into what."""

    model: str = option("", "the base: a folder, a hub id, or builtin:minilm", required=True)
    adapter: str = option("", "an adapter folder", required=True)
    output: str = option("", "a new folder for the merged model", required=True)
    dtype: str = option(
        "auto",
        "dtype on disk; auto is that of the base, or its int8 or 4 bits",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    device: str = option("auto", "where it is computed: cpu, cuda, …")
    data: str | None = option(
        None, "texts to compare the models on (default: four of our own)", type=str
    )
    columns: tuple[str, ...] = option((), "names of columns of --data, as key=column", several=True)
    any_base: bool = option(False, "take an adapter that was trained on other base weights")
    allow_loss: bool = option(
        False, "write it even where rounding moves the output as much as the adapter does, or more"
    )


def add(parser: argparse.ArgumentParser) -> None:
    flags.add_fields(parser, Merging, "what is merged")


def main(args: argparse.Namespace) -> dict[str, Any]:
    (values,) = flags.values(args, Merging)
    needed(values, "model", "adapter", "output")
    asked = Merging(**values)
    from lorakit.adapter import Adapter
    from lorakit.merging.export import export

    found = texts(asked.data, asked.columns) if asked.data else ()
    adapter = Adapter.load(asked.adapter)
    print(f"Merging {asked.adapter} into {asked.model}", file=sys.stderr)
    return export(
        asked.model,
        adapter,
        asked.output,
        dtype=asked.dtype,
        device=asked.device,
        texts=found,
        any_base=asked.any_base,
        allow_loss=asked.allow_loss,
    )


def texts(data: str, columns: tuple[str, ...]) -> list[str]:
    """Return the texts of the first rows of a file, to compare models on."""
    from lorakit.data.rows import read_rows

    rows = read_rows(data, columns=columns, split="test").rows[:16]
    joined = (
        " ".join(
            str(row[key])
            for key in ("text", "text_a", "text_b", "prompt", "completion")
            if key in row
        )
        for row in rows
    )
    return [
        text or "\n".join(turn["content"] for turn in row["messages"])
        for text, row in zip(joined, rows, strict=True)
    ]


def show(result: dict[str, Any]) -> None:
    from lorakit.cli import show as shown

    print(
        f"{result['output']}: a plain model in {result['dtype']}, {format_bytes(result['bytes'])}, written, read back, compared"
    )
    shown.table(
        ["compared with base + adapter", ""],
        [
            ["largest difference of a logit", result["max_logit_difference"]],
            ["what the adapter itself moves", result["adapter_moves"]],
            ["KL divergence (nats)", result["kl"]],
            ["same most probable output", f"{100 * result['top1_agreement']:.2f} %"],
            ["weights that differ from the base", result["differs_from_base"]],
            *coarse(result.get("rounding")),
        ],
    )


def coarse(rounding: dict[str, dict[str, float]] | None) -> list[list[Any]]:
    """Return what rounding to int8 or 4 bits moved, in the weight where that is most beside the
    adapter.
    """
    if not rounding:
        return []
    told = max(rounding.values(), key=lambda told: told["rounding"] / max(told["adapter"], 1e-30))
    return [
        ["rounding moves a weight by, relative", told["rounding"]],
        ["the adapter moves that weight by", told["adapter"]],
    ]
