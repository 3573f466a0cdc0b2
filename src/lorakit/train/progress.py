"""The progress of a run: its step, its losses and its best evaluation."""

import math
import statistics
from dataclasses import dataclass, field

RECENT = 10  # steps whose median loss shows whether a run has exploded


@dataclass
class Progress:
    """The state of a run between two steps; checkpoints store it under these names.

    Attributes:
        step: optimizer steps taken.
        tokens: tokens of all batches so far.
        seconds: time spent in steps, without evaluations.
        wall_seconds: time since the first step, evaluations and checkpoints included, without
            interruptions of the run.
        loss_first: loss of the first step.
        loss_last: loss of the last step.
        recent: losses of the last steps, at most RECENT.
        lowest: lowest median of `recent` so far.
        best_loss: lowest held-out loss so far.
        best_step: step of `best_loss`; None before the first evaluation.
        worse: evaluations since `best_step`.
        stopped_early: True once `patience` has run out.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    loss_first: float = math.nan
    loss_last: float = math.nan
    recent: list[float] = field(default_factory=list)
    lowest: float = math.inf
    best_loss: float = math.inf
    best_step: int | None = None
    worse: int = 0
    stopped_early: bool = False

    def count_step(self, loss: float, tokens: int, seconds: float) -> None:
        """Count one optimizer step."""
        self.step += 1
        self.tokens += tokens
        self.seconds += seconds
        if self.step == 1:
            self.loss_first = loss
        self.loss_last = loss
        self.recent = [*self.recent, loss][-RECENT:]
        if len(self.recent) == RECENT:
            self.lowest = min(self.lowest, statistics.median(self.recent))

    def explosion(self) -> str | None:
        """Return a sentence about a loss that has exploded, or None.

        A run has exploded when the median of its recent losses is far above the lowest such median.
        """
        if len(self.recent) < RECENT:
            return None
        median = statistics.median(self.recent)
        if median <= 4 * self.lowest + 2:
            return None
        return (
            f"The loss has exploded: its median over {RECENT} steps is {median:.4g} "
            f"at step {self.step}, it was {self.lowest:.4g}."
        )

    def count_evaluation(self, loss: float, patience: int | None) -> None:
        """Count one evaluation; `patience` evaluations without a better one stop the run."""
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.worse = loss, self.step, 0
            return
        self.worse += 1
        self.stopped_early = patience is not None and self.worse >= patience
