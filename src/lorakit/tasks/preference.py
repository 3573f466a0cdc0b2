"""Preferences: answers that are to become more likely than others, by DPO, ORPO or KTO."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor, nn

from lorakit.data.encode import IGNORED, Encoding, Example
from lorakit.data.preferences import encode_preferences
from lorakit.data.rows import Rows
from lorakit.inject.attach import enable, enabled
from lorakit.tasks.base import (
    Batch,
    Losses,
    LossSettings,
    Metrics,
    Predictions,
    Scored,
    Shape,
    Task,
    split_labels,
)
from lorakit.tasks.causal_lm import CausalLM
from lorakit.tasks.trl_losses import OBJECTIVES, Answers, Objective

DEFAULT_BETA = 0.1
WRITING = CausalLM()


class Preference(Task):
    """A loss of TRL, with the base as reference: the model with its adapters off.

    Args:
        loss: dpo, orpo or kto; None for dpo of two answers, and kto of rated ones.
        beta: of that loss; None for 0.1.
    """

    name = "preference"

    def __init__(self, loss: str | None = None, beta: float | None = None):
        self.given, self.beta = loss, DEFAULT_BETA if beta is None else beta
        self.objectives: dict[str, Objective] = {}

    @property
    def traced(self) -> Task:
        """Language modelling with all logits at once, which takes at least as much memory."""
        return _AllLogits()

    def encode(self, rows: Rows, how: Encoding) -> list[Example]:
        """Tokenise rows, as `encode_preferences` does."""
        return encode_preferences(rows, how)

    def shape_labels(self, shape: Shape, classes: int) -> Tensor:
        """Return a label a token, (batch, length)."""
        return WRITING.shape_labels(shape, classes)

    def loss(self, model: nn.Module, batch: Batch, how: LossSettings) -> Losses:
        """Return the loss of the rows; by row also the rewards (rows, 2) of their answers.

        The first is that of the good answer, the second that of the bad one; of a rated answer the
        other is 0.
        """
        batch = dict(batch)
        rated = batch.pop("rated", None)
        objective = self._find_objective(rated)
        answers = _read_answers(model, batch, objective.name)
        rows = _split_rows(batch["labels"], rated)
        if how.by_row:
            return _compute_by_row(objective, answers, rows)
        chosen = torch.cat([row[0] for row in rows])
        rejected = torch.cat([row[1] for row in rows])
        return objective.compute(answers, chosen, rejected) * len(rows), None

    def predict(self, outputs: Tensor, batch: Batch) -> Predictions:
        """Return the rewards of the answers of each row."""
        return [tuple(row) for row in outputs.tolist()]

    def take_metrics(self) -> Mapping[str, float]:
        """Return TRL's metrics of the losses since the last call, as means."""
        metrics: dict[str, float] = {}
        for objective in self.objectives.values():
            metrics |= objective.take_metrics()
        return metrics

    def metrics(self, scored: Scored) -> Metrics:
        """Return accuracy and margin, in terms of rewards: of beta times a log-ratio.

        Of two answers the accuracy is the share of rows whose chosen answer has the larger reward;
        of rated ones that of good answers above 0 and bad ones below. The margin is the mean
        reward of good answers less that of bad ones; None if there are none.
        """
        return _compare_rewards(scored)

    def _find_objective(self, rated: Tensor | None) -> Objective:
        loss = self.given or ("dpo" if rated is None else "kto")
        if loss not in self.objectives:
            self.objectives[loss] = OBJECTIVES[loss](self.beta)
        return self.objectives[loss]


class _AllLogits(CausalLM):
    def loss(self, model: nn.Module, batch: Batch, how: LossSettings) -> Losses:
        return super().loss(model, batch, replace(how, in_chunks=False))


def _read_answers(model: nn.Module, batch: Batch, loss: str) -> Answers:
    """Return the log-probabilities of answers, by the model and by the base alone."""
    inputs, labels = split_labels(batch)
    others = labels.new_empty(0)
    if loss == "orpo":
        logits = model(**inputs, use_cache=False).logits.float()
        return Answers(logits, logits.new_empty(0), batch, others)
    said = _measure(model, batch)
    batches = [batch]
    if loss == "kto":
        batches.append(exchange_answers(batch))
        others = torch.arange(len(labels), 2 * len(labels), device=labels.device)
        with torch.no_grad():
            of_others = _measure(model, batches[1])
        said = torch.cat([said, of_others])
    with _base_alone(model), torch.no_grad():
        reference = torch.cat([_measure(model, one) for one in batches])
    return Answers(said, reference, batch, others)


def _measure(model: nn.Module, batch: Batch) -> Tensor:
    """Return the log-probability of each answer of a batch."""
    return -WRITING.loss(model, batch, LossSettings(by_row=True))[0]


@contextmanager
def _base_alone(model: nn.Module) -> Iterator[None]:
    """Switch the adapters and all dropout off in the block."""
    was_on, was_training = enabled(model), model.training
    model.eval()
    if was_on:
        enable(model, None)
    try:
        yield
    finally:
        if was_on:
            enable(model, was_on)
        model.train(was_training)


def exchange_answers(batch: Batch) -> Batch:
    """Return a batch in which each prompt has the answer of the row before; the first, of the last.

    It is as wide as the batch; an answer that does not fit is cut.
    """
    width = batch["input_ids"].shape[1]
    parts = [_split_answer(batch, row) for row in range(len(batch["labels"]))]
    exchanged: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for row, (prompt, _, _) in enumerate(parts):
        _, answer, labels = parts[row - 1]
        unlearned = torch.full_like(prompt, IGNORED)
        values = {"input_ids": (prompt, answer), "labels": (unlearned, labels)}
        values["attention_mask"] = (torch.ones_like(prompt), torch.ones_like(answer))
        for name, both in values.items():
            fill = IGNORED if name == "labels" else 0
            whole = torch.cat(both)[:width]
            padded = nn.functional.pad(whole, (0, width - len(whole)), value=fill)
            exchanged[name].append(padded)
    return {name: torch.stack(rows) for name, rows in exchanged.items()}


def _split_answer(batch: Batch, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens of the prompt, those of the answer, and the labels of the answer."""
    length = int(batch["attention_mask"][row].sum())
    ids, labels = batch["input_ids"][row, :length], batch["labels"][row, :length]
    start = int((labels != IGNORED).nonzero()[0])
    return ids[:start], ids[start:], labels[start:]


def _split_rows(labels: Tensor, rated: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Return the positions of the good and the bad answers of each row of data.

    Args:
        labels: (answers, length).
        rated: True for each answer that is good; None for pairs, the good ones first.
    """
    places = torch.arange(len(labels), device=labels.device).split(1)
    if rated is None:
        half = len(labels) // 2
        return list(zip(places[:half], places[half:], strict=True))
    pairs = zip(places, rated.tolist(), strict=True)
    return [(place, place[:0]) if is_good else (place[:0], place) for place, is_good in pairs]


def _compute_by_row(
    objective: Objective, answers: Answers, rows: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the loss of each row, and the rewards of its answers as the trainer has them."""
    losses: list[Tensor] = []
    rewards: list[list[float]] = []
    for chosen, rejected in rows:
        losses.append(objective.compute(answers, chosen, rejected))
        metrics = objective.take_metrics()
        rewards.append([metrics.get(f"rewards/{name}", 0.0) for name in ("chosen", "rejected")])
    return torch.stack(losses), torch.tensor(rewards)


def _compare_rewards(scored: Scored) -> Metrics:
    """Return accuracy and margin; see `Preference.metrics`."""
    good: list[float] = []
    bad: list[float] = []
    for example, (chosen, rejected) in zip(scored.examples, scored.predictions, strict=True):
        if example.rating is not False:
            good.append(chosen)
        if example.rating is not True:
            bad.append(rejected)
    right = [chosen > rejected for chosen, rejected in scored.predictions]
    margin = fmean(good) - fmean(bad) if good and bad else None
    return {"accuracy": fmean(right), "margin": margin}


def switch_dropout_off(model: nn.Module) -> None:
    """Set the dropout of a base to zero, as TRL does: rewards compare it with itself."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
