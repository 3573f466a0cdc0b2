"""What a run shows and keeps: a progress bar (or plain lines) on stderr, and metrics.jsonl."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

METRICS = "metrics.jsonl"


class Log:
    """One line a step to metrics.jsonl, flushed at once; and on stderr a bar on a terminal, about
    20 lines elsewhere.

    Args:
        path: metrics.jsonl; lines after `start` (of a run that was killed later than its last
            checkpoint) are dropped.
        start: the step that the run goes on from.
        total: the step that it ends with.
        quiet: write to the file alone.
    """

    def __init__(self, path: Path, start: int, total: int, *, quiet: bool = False):
        self.total, self.last, self.quiet = total, time.monotonic(), quiet
        self.file = _reopen(path, start)
        self.console = Console(stderr=True)
        self.every = -(-total // 20)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self.bar.start()
        self.task = self.bar.add_task("training", total=total, completed=start, note="")

    def step(self, line: dict[str, Any]) -> None:
        """Keep one step: step, loss, lr, tokens, seconds, and eval_… where measured."""
        self.file.write(json.dumps({k: _plain(v) for k, v in line.items()}) + "\n")
        self.file.flush()
        if self.quiet:
            return
        note = (
            f"loss {line['loss']:.4f}  {line['tokens'] / max(line['seconds'], 1e-9):,.0f} tokens/s"
        )
        if "eval_loss" in line:
            note += f"  eval loss {line['eval_loss']:.4f}"
            self.say(told(line))
        elif not self.console.is_terminal and (line["step"] % self.every == 0 or line["step"] == 1):
            left = line["seconds"] / line["step"] * (self.total - line["step"])
            print(f"step {line['step']}/{self.total}  {note}  {left:.0f} s left", file=sys.stderr)
        self.bar.update(self.task, completed=line["step"], note=note)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        self.bar.stop()
        self.file.close()


def told(line: dict[str, Any]) -> str:
    """Return the measures of one evaluation in a line."""
    parts = [
        f"{key.removeprefix('eval_')} {value:.4f}"
        for key, value in line.items()
        if key.startswith("eval_") and isinstance(value, float)
    ]
    return f"step {line['step']:>6}  train loss {line['loss']:.4f}  eval: {'  '.join(parts)}"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _reopen(path: Path, start: int):
    kept = [line for line in read_metrics(path) if line["step"] <= start] if start else []
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(part, path)
    return path.open("a")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; a last line that a kill cut off does not count."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Any]:
    """Show a bar on stderr while something of a known length runs; yields a function to call with
    each advance.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)
