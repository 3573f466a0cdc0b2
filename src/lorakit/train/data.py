"""The rows of a run: read, held out, and the task they are for."""

from dataclasses import dataclass

import numpy as np
import torch

from lorakit.data.labels import infer_task, list_labels
from lorakit.data.rows import Rows, read_for
from lorakit.errors import DataError
from lorakit.train.config import TrainSpec

HELD_OUT_ROWS = 2000  # held out of the training data at most
FEW_ROWS = 5  # rows from which on at least one is held out


@dataclass(frozen=True)
class RunData:
    """The rows of a run, and the task they are for.

    Attributes:
        task: causal-lm, classify or regress.
        labels: class names, for classify; empty otherwise.
        rows: rows to train on.
        held_out: rows to evaluate on; None where there are none.
        described: a line on what was read.
    """

    task: str
    labels: list[str]
    rows: Rows
    held_out: Rows | None
    described: str = ""

    @property
    def held_out_count(self) -> int:
        """Number of held-out rows."""
        return len(self.held_out) if self.held_out else 0

    def count_shared(self) -> int:
        """Return the number of held-out rows that are in the training data too."""
        if not self.held_out:
            return 0
        shared = np.isin(self.held_out.key_hashes(), self.rows.key_hashes())
        return int(shared.sum())


def read_data(settings: TrainSpec) -> RunData:
    """Read the rows, find their task and classes, and hold some out.

    Raises:
        DataError: rows that cannot be read or do not fit the task, or a single class.
    """
    rows = read_for(settings, settings.data)
    task = infer_task(rows, settings.task)
    # A rare label may be in the held-out rows alone: labels are collected before the split.
    labels = list_labels(rows) if task == "classify" else []
    trained, held_out = _hold_out(rows, settings)
    if task == "classify" and len(labels) < 2:
        raise DataError(
            f"{settings.data} has one label only ({labels[0]!r}): there is nothing to tell apart."
        )
    return RunData(task, labels, trained, held_out, rows.describe())


def _hold_out(rows: Rows, settings: TrainSpec) -> tuple[Rows, Rows | None]:
    """Return the rows to train on and the held-out rows.

    These are other data, the test split of a builtin, or rows drawn by the seed.
    """
    if settings.eval_data or settings.data.startswith("builtin:"):
        source = settings.eval_data or settings.data
        return rows, read_for(settings, source, "test")
    least = 1 if settings.eval_fraction and len(rows) >= FEW_ROWS else 0
    share = round(settings.eval_fraction * len(rows))
    count = min(HELD_OUT_ROWS, max(least, share))
    if not count:
        return rows, None
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(rows), generator=generator).tolist()
    return rows.take(sorted(order[count:])), rows.take(sorted(order[:count]))
