"""`lorakit preview`."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from lorakit.cli import flags
from lorakit.cli.request import DataRequest, require
from lorakit.cli.tables import print_table
from lorakit.spec import option, option_like
from lorakit.train.config import TrainSpec

if TYPE_CHECKING:
    from lorakit.evaluate.preview import Bin, Preview

BAR = 40  # characters of the longest bar
TRAINED = "bold black on green"
LINE_END = "↵"
# Pictures of characters that would do something to a terminal.
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}


@dataclass(frozen=True, kw_only=True)
class PreviewRequest:
    """The model whose tokens are shown, and the number of rows."""

    model: str = option(
        "",
        "base model, of which only the tokenizer is loaded: a folder, a hub id, or builtin:minilm",
        required=True,
    )
    trust_remote_code: bool = option_like(TrainSpec, "trust_remote_code")
    task: str = option_like(TrainSpec, "task")
    loss_on: str = option_like(TrainSpec, "loss_on")
    template: str | None = option_like(TrainSpec, "template")
    max_length: int | None = option_like(TrainSpec, "max_length", least=2)
    show: int = option(3, "number of rows to show with what is trained of them", least=0)


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_fields(parser, PreviewRequest, "the preview")
    flags.add_fields(parser, DataRequest, "the data")


def run(args: argparse.Namespace) -> "Preview":
    request_values, data_values = flags.read_settings(args, PreviewRequest, DataRequest)
    require({**request_values, **data_values}, PreviewRequest, DataRequest)
    request = PreviewRequest(**request_values)
    data = DataRequest(**{"split": "train", **data_values})
    from lorakit.evaluate.preview import preview

    return preview(
        data.read(),
        request.model,
        request.task,
        request.loss_on,
        request.max_length,
        request.show,
        trust_remote_code=request.trust_remote_code,
        template=request.template,
    )


def show(result: "Preview") -> None:
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


def _show_rows(result: "Preview") -> None:
    """Print rows: what is trained in green, or in [brackets] without colour."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    has_colour = console.is_terminal and not console.no_color
    for row in result["shown"]:
        line = Text()
        line.append(f"{row['where']}\n", style="dim" if has_colour else "")
        for trained, run in join_pieces(row["pieces"]):
            text = run.translate(CONTROLS)
            if trained and has_colour:
                line.append(text, style=TRAINED)
            else:
                line.append(_bracket(text) if trained else text)
        if row["target"] is not None:
            line.append(f"\n-> {row['target']}", style="bold green" if has_colour else "")
        console.print(line, end="\n\n")
    if result["shown"] and result["task"] in ("causal-lm", "preference"):
        marked = "green" if has_colour else "in [brackets]"
        console.print(f"Trained tokens are {marked}.\n", markup=False)


def _bracket(text: str) -> str:
    """Return a text in brackets, the last of which stands on the line that it ends.

    >>> _bracket("one\\ntwo\\n")
    '[one\\ntwo↵]\\n'
    """
    lines = text.rstrip("\n")
    ends = len(text) - len(lines)
    return f"[{lines}{LINE_END * ends}]" + "\n" * ends


def join_pieces(pieces: Sequence[tuple[str, bool]]) -> Iterator[tuple[bool, str]]:
    """Yield the text of each run of tokens that are all trained, or all not.

    >>> list(join_pieces([("a", False), ("b", True), ("c", True)]))
    [(False, 'a'), (True, 'bc')]
    """
    for trained, run in groupby(pieces, itemgetter(1)):
        yield trained, "".join(text for text, _ in run)


def _show_lengths(histogram: Sequence["Bin"]) -> None:
    most = max(one["count"] for one in histogram)
    print("length in tokens")
    for one in histogram:
        bar = "█" * round(BAR * one["count"] / most)
        print(f"  {one['from']:>6} – {one['to']:<6} {bar:<{BAR}} {one['count']:,}")
