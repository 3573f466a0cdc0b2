"""The log of a run: a progress bar (or plain lines) on stderr, and metrics.jsonl."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lorakit.files import write_json_lines
from lorakit.plots.losses import LossPoint
from lorakit.text import format_duration, line_width, print_message, wrap_lines
from lorakit.train.trackers import Trackers

METRICS = "metrics.jsonl"
Say = Callable[[str], None]  # takes a message for the user
PLAIN_LINES = 20  # lines of a run where stderr is no terminal


class Log:
    """A log with one line per step in metrics.jsonl, and a bar on a terminal (or about 20 lines).

    Each line is flushed at once. The loss that is shown is the mean over the steps since the last
    line; the file has that of each step.

    Args:
        path: metrics.jsonl. Lines after `start` are dropped: a killed run may have logged steps
            after its last checkpoint.
        start: the step that the run continues from.
        total: the step that it ends with.
        quiet: True to write to the file alone.
        trackers: get the numbers of each step too.
    """

    def __init__(
        self,
        path: Path,
        start: int,
        total: int,
        *,
        quiet: bool = False,
        trackers: Trackers | None = None,
    ):
        self.total, self.quiet, self.trackers = total, quiet, trackers
        self.file = _reopen(path, start)
        self.console = Console(stderr=True)
        self.every = math.ceil(total / PLAIN_LINES)
        self.start, self.begun = start, time.monotonic()
        self.losses: list[float] = []  # of the steps since the last line
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

    def step(self, line: Mapping[str, float]) -> None:
        """Log one step.

        Args:
            line: step, loss, lr, tokens, seconds, grad_norm, and eval_… where it was evaluated.
        """
        values = {name: _finite_or_none(value) for name, value in line.items()}
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()
        if self.trackers:
            self.trackers.log(line)
        if self.quiet:
            return
        speed = line["tokens"] / max(line["seconds"], 1e-9)
        self.losses.append(line["loss"])
        loss = statistics.fmean(self.losses)
        note = f"loss {loss:.4f}  {speed:,.0f} tokens/s"
        if "eval_loss" in line:
            note += f"  eval loss {line['eval_loss']:.4f}"
            self.say(format_evaluation({**line, "loss": loss}))
            self.losses = []
        elif self._plain_line_is_due(line["step"]):
            left = format_duration(self._seconds_left(line["step"]))
            print_message(f"step {line['step']}/{self.total}  {note}  {left} left")
            self.losses = []
        self.bar.update(self.task, completed=line["step"], note=note)

    @contextmanager
    def evaluating(self, total: int) -> Iterator[Callable[[int], None]]:
        """Show a second bar on a terminal during an evaluation.

        Args:
            total: sequences that are evaluated.

        Yields:
            A function that advances the bar by a number.
        """
        task = self.bar.add_task("evaluating", total=total, note="")
        try:
            yield lambda count: self.bar.advance(task, count)
        finally:
            self.bar.remove_task(task)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        fitted = wrap_lines(text, line_width(self.console.file))
        self.bar.console.print(fitted, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Stop the bar and close the file."""
        self.bar.stop()
        self.file.close()
        if self.trackers:
            self.trackers.close()

    def _seconds_left(self, step: float) -> float:
        """Return the time until the last step, at the pace of this session's steps so far.

        Evaluations and checkpoints are part of the pace.
        """
        pace = (time.monotonic() - self.begun) / (step - self.start)
        return pace * (self.total - step)

    def _plain_line_is_due(self, step: float) -> bool:
        if self.console.is_terminal:
            return False
        return step == 1 or step % self.every == 0


def format_evaluation(line: Mapping[str, float]) -> str:
    """Return the metrics of one evaluation as one line of text."""
    parts = [
        f"{name.removeprefix('eval_')} {value:.4f}"
        for name, value in line.items()
        if name.startswith("eval_") and isinstance(value, float)
    ]
    loss, metrics = line["loss"], "  ".join(parts)
    return f"step {line['step']:>6}  train loss {loss:.4f}  eval: {metrics}"


def _finite_or_none(value: float) -> float | None:
    """Return None for a number that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _reopen(path: Path, start: int) -> TextIO:
    kept = []
    if start:
        kept = [line for line in read_metrics(path) if line["step"] <= start]
    write_json_lines(path, kept)
    return path.open("a")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl, without a last line that was cut off by a kill."""
    lines = []
    if not path.is_file():
        return lines
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def split_losses(lines: Sequence[Mapping[str, Any]]) -> tuple[list[LossPoint], list[LossPoint]]:
    """Return the losses of steps and those of evaluations, without those that are no numbers.

    Args:
        lines: of a metrics.jsonl.
    """
    trained: list[LossPoint] = []
    held_out: list[LossPoint] = []
    for key, points in (("loss", trained), ("eval_loss", held_out)):
        points += [
            LossPoint(line["step"], line[key]) for line in lines if line.get(key) is not None
        ]
    return trained, held_out


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal while something of known length runs.

    Yields:
        A function that advances the bar by a number.
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
        yield lambda count: bar.advance(task, count)
