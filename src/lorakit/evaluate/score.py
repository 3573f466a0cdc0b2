"""The loss of one batch, and the metrics of a data set. Training and `eval` both use these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from lorakit.data.batches import collate, sort_into_batches
from lorakit.data.encode import Example
from lorakit.models.padding import leaks_padding
from lorakit.tasks.base import Batch, Losses, LossSettings, Prediction, Scored, Task
from lorakit.tasks.find import find_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def batch_loss(
    model: nn.Module,
    batch: Batch,
    task: str | Task,
    *,
    by_row: bool = False,
    label_smoothing: float = 0.0,
    in_chunks: bool = True,
) -> Losses:
    """Return the summed loss of a batch, and the model's outputs.

    Args:
        model: a model of transformers with the head of the task.
        batch: a result of `collate` or `pack_examples`.
        task: itself, or its name.
        by_row: True for the sum of each row, (batch,), instead of that of all.
        label_smoothing: share of the target that is spread over all classes or tokens.
        in_chunks: False to compute all logits at once, and return them.

    Returns:
        The sum, float32 (divide it by the count of trained tokens or rows); and the outputs that
        the task's predictions are made of: logits (batch, classes), (batch, length, classes) or
        values (batch,), or None if the logits were computed in chunks.
    """
    how = LossSettings(by_row, label_smoothing, in_chunks)
    return find_task(task).loss(model, batch, how)


@dataclass(frozen=True)
class Scores:
    """Metrics of a data set, with the prediction and the loss of each example.

    Attributes:
        metrics: by name.
        predictions: of each example, as the task makes them; empty for language modelling.
        losses: loss of each example, summed over its trained tokens.
    """

    metrics: dict[str, Any]
    predictions: list[Prediction]
    losses: list[float]


def evaluate(
    model: nn.Module,
    examples: Sequence[Example],
    task: str | Task,
    *,
    pad: int,
    batch_size: int = 32,
    labels: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Score a model on a data set, in eval mode; its earlier mode is restored.

    Args:
        model: with the adapters that are scored attached and on.
        examples: encoded for the task.
        task: itself, or its name.
        pad: id that fills batches.
        batch_size: sequences at once.
        labels: names of the classes, where the task has any.
        progress: called with the number of examples done since the last call.

    Returns:
        Scores: the loss, what the `metrics` of the task return, and the number of rows where each
            has a prediction.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            losses, predictions = _predict(model, examples, task, pad, batch_size, progress)
    finally:
        model.train(was_training)
    count = sum(example.trained for example in examples)
    loss = sum(losses) / max(count, 1)
    found = find_task(task).metrics(Scored(examples, predictions, loss, labels))
    counted = {"rows": len(predictions)} if predictions else {}
    return Scores({"loss": loss, **found, **counted}, predictions, losses)


def _predict(
    model: nn.Module,
    examples: Sequence[Example],
    task: str | Task,
    pad: int,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> tuple[list[float], list[Prediction]]:
    """Return the loss of each example, and its prediction where the task makes any."""
    device = next(model.parameters()).device
    losses = [0.0] * len(examples)
    predictions: dict[int, Prediction] = {}
    lengths = [len(example.ids) for example in examples]
    is_mixed = batch_size > 1 and len(set(lengths)) > 1
    unpadded = is_mixed and leaks_padding(cast("PreTrainedModel", model), pad)
    for positions in sort_into_batches(lengths, batch_size, unpadded=unpadded):
        batch = collate([examples[i] for i in positions], pad, device)
        row_losses, outputs = batch_loss(model, batch, task, by_row=True)
        for i, loss in zip(positions, row_losses.tolist(), strict=True):
            losses[i] = loss
        predicted = [] if outputs is None else find_task(task).predict(outputs, batch)
        if predicted:
            predictions.update(zip(positions, predicted, strict=True))
        if progress:
            progress(len(positions))
    return losses, [predictions[i] for i in sorted(predictions)]
