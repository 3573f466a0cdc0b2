"""`lorakit preview`."""

import argparse
from dataclasses import dataclass
from typing import Any

from lorakit.cli import flags
from lorakit.cli.evaluate import Source, needed, rows_of
from lorakit.models.tasks import CHOICES
from lorakit.spec import option


@dataclass(frozen=True, kw_only=True)
class Looking:
    """At what, and how closely."""

    model: str = option(
        "", "a folder, a hub id, or builtin:minilm; its tokenizer alone is loaded", required=True
    )
    task: str = option("auto", "what is learned; auto tells by the rows", choices=CHOICES)
    loss_on: str = option(
        "completion",
        "train completions and assistant turns alone, or all tokens",
        choices=("completion", "all"),
    )
    max_length: int | None = option(
        None, "tokens of a sequence (default: 512, or what the model takes)", type=int, least=2
    )
    show: int = option(3, "rows to show token by token", least=0)


def add(parser: argparse.ArgumentParser) -> None:
    flags.add_fields(parser, Looking, "what is shown")
    flags.add_fields(parser, Source, "the data")


def main(args: argparse.Namespace) -> dict[str, Any]:
    looking_values, source_values = flags.values(args, Looking, Source)
    needed({**looking_values, **source_values}, "model", "data")
    looking, source = Looking(**looking_values), Source(**{"split": "train", **source_values})
    from lorakit.evaluate.preview import preview

    return preview(
        rows_of(source),
        looking.model,
        looking.task,
        looking.loss_on,
        looking.max_length,
        looking.show,
    )


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    from lorakit.cli import show as shown

    console = Console(highlight=False, soft_wrap=True)
    for row in result["shown"]:
        line = Text(f"{row['where']}\n", style="dim")
        for piece, trained in row["pieces"]:
            mark = piece if console.is_terminal or not trained else f"[{piece}]"
            line.append(mark, style="bold black on green" if trained else "")
        if row["target"] is not None:
            line.append(f"\n-> {row['target']}", style="bold green")
        console.print(line, end="\n\n")
    if result["shown"] and result["task"] == "causal-lm":
        console.print(
            "Trained tokens are " + ("green." if console.is_terminal else "in [brackets].") + "\n",
            markup=False,
        )
    facts = [
        ["rows", result["rows"]],
        ["sequences", result["sequences"]],
        ["tokens", result["tokens"]],
        ["trained tokens", result["trained_tokens"]],
        ["rows that are cut", result["rows_cut"]],
        ["tokens that are cut off", result["tokens_cut"]],
        ["rows that stand there twice", result["rows_repeated"]],
        ["longest sequence allowed", result["max_length"]],
    ]
    if result["eos_trained"] is not None:
        facts.append(
            ["sequences whose EOS is trained", f"{result['eos_trained']:,} ({result['eos']})"]
        )
    shown.table([result["task"], ""], facts)
    if result["labels"]:
        shown.table(["label", "rows"], list(result["labels"].items()))
    most = max(h["count"] for h in result["histogram"])
    print("length in tokens")
    for h in result["histogram"]:
        print(
            f"  {h['from']:>6} – {h['to']:<6} {'█' * round(40 * h['count'] / most):<40} {h['count']:,}"
        )
