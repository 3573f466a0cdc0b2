"""The loss of one batch, and the metrics of a data set. Training and `eval` both use these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.data.batches import collate, sort_into_batches
from lorakit.data.encode import IGNORED, Example
from lorakit.evaluate import metrics
from lorakit.models.chunked_loss import chunked_loss, chunked_loss_by_row, find_head
from lorakit.models.padding import leaks_padding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Prediction = tuple[float, float]  # (class, probability) or (value, 1.0)


def batch_loss(
    model: nn.Module,
    batch: dict[str, Any],
    task: str,
    *,
    by_row: bool = False,
    label_smoothing: float = 0.0,
    in_chunks: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Return the summed loss of a batch, and the model's outputs.

    Args:
        model: a model of transformers with the head of the task.
        batch: a result of `collate` or `pack_examples`.
        task: causal-lm (cross-entropy a trained token), classify (a row), or regress (squared error
            a row).
        by_row: True for the sum of each row, (batch,), instead of that of all.
        label_smoothing: share of the target that is spread over all classes or tokens.
        in_chunks: False to compute all logits at once, and return them.

    Returns:
        The sum, float32 (divide it by the count of trained tokens or rows); and the logits (batch,
        classes) or (batch,) in float32, or (batch, length, vocabulary), or None if the logits were
        computed in chunks.
    """
    labels = batch["labels"]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    if task == "causal-lm":
        return _causal_loss(
            cast("PreTrainedModel", model),
            inputs,
            labels,
            by_row=by_row,
            smoothing=label_smoothing,
            in_chunks=in_chunks,
        )
    reduction = "none" if by_row else "sum"
    logits = model(**inputs).logits.float()
    if task == "classify":
        loss = F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=label_smoothing)
        return loss, logits
    values = logits.squeeze(-1)
    return F.mse_loss(values, labels.float(), reduction=reduction), values


def _causal_loss(
    model: "PreTrainedModel",
    inputs: dict[str, Any],
    labels: Tensor,
    *,
    by_row: bool,
    smoothing: float,
    in_chunks: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss of the next tokens, and the logits unless they were computed in chunks."""
    head = find_head(model, inputs["input_ids"]) if in_chunks else None
    if head is not None:
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        compute = chunked_loss_by_row if by_row else chunked_loss
        return compute(head, inputs, targets, IGNORED, smoothing), None
    reduction = "none" if by_row else "sum"
    logits = model(**inputs, use_cache=False).logits
    flat = logits[:, :-1].float().flatten(0, 1)
    targets = labels[:, 1:].flatten()
    loss = F.cross_entropy(
        flat, targets, ignore_index=IGNORED, reduction=reduction, label_smoothing=smoothing
    )
    if by_row:
        loss = loss.view(len(labels), -1).sum(1)
    return loss, logits


@dataclass(frozen=True)
class Scores:
    """Metrics of a data set, with the prediction and the loss of each example.

    Attributes:
        metrics: by name.
        predictions: (class, probability) or (value, 1.0) of each example; empty for language
            modelling.
        losses: loss of each example, summed over its trained tokens.
    """

    metrics: dict[str, Any]
    predictions: list[Prediction]
    losses: list[float]


def evaluate(
    model: nn.Module,
    examples: Sequence[Example],
    task: str,
    *,
    pad: int,
    batch_size: int = 32,
    classes: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Score a model on a data set, in eval mode; its earlier mode is restored.

    Args:
        model: with the adapters that are scored attached and on.
        examples: encoded for the task.
        task: causal-lm, classify or regress.
        pad: id that fills batches.
        batch_size: sequences at once.
        classes: number of classes, for classify.
        progress: called with the number of examples done since the last call.

    Returns:
        Scores: loss, perplexity and tokens · loss, accuracy, f1, precision, recall,
            matthews and rows · loss, pearson, spearman and rows.
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
    if task == "causal-lm":
        perplexity = metrics.perplexity(loss)
        return Scores({"loss": loss, "perplexity": perplexity, "tokens": count}, [], losses)
    task_metrics = _task_metrics(predictions, examples, task, classes)
    return Scores({"loss": loss, **task_metrics, "rows": count}, predictions, losses)


def _predict(
    model: nn.Module,
    examples: Sequence[Example],
    task: str,
    pad: int,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> tuple[list[float], list[Prediction]]:
    """Return the loss of each example, and its prediction unless the task is language modelling."""
    device = next(model.parameters()).device
    losses = [0.0] * len(examples)
    predictions: list[Prediction] = []
    if task != "causal-lm":
        predictions = [(0.0, 0.0)] * len(examples)
    lengths = [len(example.ids) for example in examples]
    is_mixed = batch_size > 1 and len(set(lengths)) > 1
    unpadded = is_mixed and leaks_padding(cast("PreTrainedModel", model), pad)
    for positions in sort_into_batches(lengths, batch_size, unpadded=unpadded):
        batch = collate([examples[i] for i in positions], pad, device)
        row_losses, outputs = batch_loss(model, batch, task, by_row=True)
        for i, loss in zip(positions, row_losses.tolist(), strict=True):
            losses[i] = loss
        if predictions and outputs is not None:
            for i, prediction in zip(positions, _predictions(outputs, task), strict=True):
                predictions[i] = prediction
        if progress:
            progress(len(positions))
    return losses, predictions


def _predictions(outputs: Tensor, task: str) -> list[Prediction]:
    """Return (class, probability) or (value, 1.0) of each row."""
    if task == "regress":
        return [(value, 1.0) for value in outputs.tolist()]
    best = outputs.softmax(-1).max(-1)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _task_metrics(
    predictions: Sequence[Prediction], examples: Sequence[Example], task: str, classes: int
) -> dict[str, Any]:
    """Return the metrics of a classification or a regression."""
    targets = [example.target for example in examples]
    values = [value for value, _ in predictions]
    if task == "regress":
        return dict(metrics.regression(targets, values))
    true_classes = [int(target) for target in targets]
    predicted_classes = [int(value) for value in values]
    return dict(metrics.classification(true_classes, predicted_classes, classes))
