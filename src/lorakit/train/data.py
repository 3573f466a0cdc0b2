"""The rows of a run: read, held out, and the task they are for."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch

from lorakit.data.mixture import count_draws, describe_draws, draw_positions
from lorakit.data.rows import Rows, join_rows, read_for, read_parts
from lorakit.errors import DataError
from lorakit.tasks.find import find_task
from lorakit.tasks.rows import choose_task
from lorakit.train.config import TrainSpec

HELD_OUT_ROWS = 2000  # held out of the training data at most
FEW_ROWS = 5  # rows from which on at least one is held out


@dataclass(frozen=True)
class RunData:
    """The rows of a run, and the task they are for.

    Attributes:
        task: its name.
        labels: class names, where the task has any.
        rows: rows to train on.
        held_out: rows to evaluate on; None where there are none.
        described: lines on what was read.
        copies: number of rows to train on that `data_weights` repeats.
    """

    task: str
    labels: list[str]
    rows: Rows
    held_out: Rows | None
    described: str = ""
    copies: int = 0

    @property
    def kinds(self) -> set[str]:
        """Kinds of the rows to train on and to evaluate on."""
        return {part.kind for part in (self.rows, self.held_out) if part}

    @property
    def held_out_count(self) -> int:
        """Number of held-out rows."""
        return len(self.held_out) if self.held_out else 0

    def count_shared(self) -> int:
        """Return the number of held-out rows that are in the training data too."""
        if not self.held_out:
            return 0
        return self.held_out.count_shared(self.rows)


def read_data(settings: TrainSpec) -> RunData:
    """Read the rows, find their task and classes, and hold some out.

    Raises:
        DataError: rows that cannot be read or do not fit the task, or a single class.
    """
    parts = read_parts(settings, settings.data)
    rows = join_rows(parts)
    task = choose_task(
        rows, settings.task, settings.model, trust_remote_code=settings.trust_remote_code
    )
    # A rare label may be in the held-out rows alone: labels are collected before the split.
    labels = find_task(task).list_classes(rows)
    kept, held_out = _hold_out(rows, settings)
    described = [part.describe() for part in parts]
    copies = 0
    if settings.data_weights:
        positions = _split(kept, parts)
        sizes = [len(own) for own in positions]
        draws = count_draws(sizes, settings.data_weights)
        kept = draw_positions(positions, draws, settings.seed)
        described += describe_draws(parts, sizes, draws)
        copies = sum(draws) - sum(sizes)
    if task == "classify" and len(labels) < 2:
        raise DataError(
            f"{rows.source} has one label only ({labels[0]!r}): there is nothing to tell apart."
        )
    return RunData(task, labels, rows.take(kept), held_out, "\n".join(described), copies)


def _hold_out(rows: Rows, settings: TrainSpec) -> tuple[Sequence[int], Rows | None]:
    """Return the positions of the rows to train on, and the held-out rows.

    These are other data, the test split of a builtin, or rows drawn by the seed.
    """
    is_builtin = isinstance(settings.data, str) and settings.data.startswith("builtin:")
    if settings.eval_data or is_builtin:
        source = settings.eval_data or settings.data
        return range(len(rows)), read_for(settings, source, "test")
    least = 1 if settings.eval_fraction and len(rows) >= FEW_ROWS else 0
    share = round(settings.eval_fraction * len(rows))
    count = min(HELD_OUT_ROWS, max(least, share))
    if not count:
        return range(len(rows)), None
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(rows), generator=generator).numpy()
    return np.sort(order[count:]).tolist(), rows.take(np.sort(order[:count]).tolist())


def _split(positions: Sequence[int], parts: Sequence[Rows]) -> list[Sequence[int]]:
    """Return the positions that are of each part.

    Raises:
        DataError: all rows of one are held out.
    """
    ends = [*accumulate(len(part) for part in parts)]
    cuts = [0, *(bisect_left(positions, end) for end in ends)]
    own = [positions[start:end] for start, end in pairwise(cuts)]
    empty = [part.source for part, some in zip(parts, own, strict=True) if not some]
    if empty:
        raise DataError(
            "All rows of a data set are held out.", empty, "Give --eval-data, or more rows."
        )
    return own
