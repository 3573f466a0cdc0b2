"""`lorakit preview`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from lorakit.cli import flags
from lorakit.cli.request import DataRequest, Result, require
from lorakit.cli.tables import print_table
from lorakit.models.tasks import CHOICES
from lorakit.spec import option

BAR = 40  # characters of the longest bar


@dataclass(frozen=True, kw_only=True)
class PreviewRequest:
    """The model whose tokens are shown, and the number of rows."""

    model: str = option(
        "", "a folder, a hub id, or builtin:minilm; only its tokenizer is loaded", required=True
    )
    task: str = option("auto", "task of the training; auto: that of the rows", choices=CHOICES)
    loss_on: str = option(
        "completion",
        "train only completions and assistant turns, or all tokens",
        choices=("completion", "all"),
    )
    max_length: int | None = option(
        None, "tokens of a sequence (default: 512, or what the model takes)", type=int, least=2
    )
    show: int = option(3, "rows to show token by token", least=0)


def add(parser: argparse.ArgumentParser) -> None:
    flags.add_fields(parser, PreviewRequest, "what is shown")
    flags.add_fields(parser, DataRequest, "the data")


def main(args: argparse.Namespace) -> Result:
    request_values, data_values = flags.values(args, PreviewRequest, DataRequest)
    require({**request_values, **data_values}, "model", "data")
    request = PreviewRequest(**request_values)
    data = DataRequest(**{"split": "train", **data_values})
    from lorakit.evaluate.preview import preview

    return dict(
        preview(
            data.read(),
            request.model,
            request.task,
            request.loss_on,
            request.max_length,
            request.show,
        )
    )


def show(result: Result) -> None:
    _show_rows(result)
    facts = [
        ["rows", result["rows"]],
        ["sequences", result["sequences"]],
        ["tokens", result["tokens"]],
        ["trained tokens", result["trained_tokens"]],
        ["rows that are cut", result["rows_cut"]],
        ["tokens that are cut off", result["tokens_cut"]],
        ["rows that occur twice", result["rows_repeated"]],
        ["longest sequence allowed", result["max_length"]],
    ]
    if result["eos_trained"] is not None:
        count = f"{result['eos_trained']:,} ({result['eos']})"
        facts.append(["sequences whose EOS is trained", count])
    print_table([result["task"], ""], facts)
    if result["labels"]:
        print_table(["label", "rows"], list(result["labels"].items()))
    _show_lengths(result["histogram"])


def _show_rows(result: Result) -> None:
    """Print rows token by token: trained ones in green, or in [brackets] without colour."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for row in result["shown"]:
        line = Text(f"{row['where']}\n", style="dim")
        for piece, trained in row["pieces"]:
            bracketed = trained and not console.is_terminal
            text = f"[{piece}]" if bracketed else piece
            line.append(text, style="bold black on green" if trained else "")
        if row["target"] is not None:
            line.append(f"\n-> {row['target']}", style="bold green")
        console.print(line, end="\n\n")
    if result["shown"] and result["task"] == "causal-lm":
        marked = "green" if console.is_terminal else "in [brackets]"
        console.print(f"Trained tokens are {marked}.\n", markup=False)


def _show_lengths(histogram: Sequence[Result]) -> None:
    most = max(one["count"] for one in histogram)
    print("length in tokens")
    for one in histogram:
        bar = "█" * round(BAR * one["count"] / most)
        print(f"  {one['from']:>6} – {one['to']:<6} {bar:<{BAR}} {one['count']:,}")
