"""The loss of one batch, and the metrics of a whole data set. Training and `eval` use these same
two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.data.batches import collate, sort_into_batches
from lorakit.data.encode import IGNORED, Example
from lorakit.evaluate import metrics
from lorakit.models.chunked_loss import chunked_loss, chunked_loss_by_row, find_head


def batch_loss(
    model: nn.Module, batch: dict[str, Any], task: str, *, by_row: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the summed loss of a batch, and the model's outputs.

    Args:
        model: of transformers, with the head of the task.
        batch: what `collate` or `pack_examples` gives.
        task: causal-lm (cross-entropy a trained token), classify (a row), or regress (squared error
            a row).
        by_row: give the sum of each row, (batch,), instead of that of all.

    Returns:
        The sum, float32 (divide it by the count of trained tokens or rows); and the logits (batch,
        classes) or (batch,) in float32, or (batch, length, vocabulary), or None where those of all
        tokens were never made.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    labels, how = batch["labels"], "none" if by_row else "sum"
    if task == "causal-lm":
        head = find_head(model, inputs["input_ids"])
        if head is not None:
            return (chunked_loss_by_row if by_row else chunked_loss)(
                head, inputs, F.pad(labels[:, 1:], (0, 1), value=IGNORED), IGNORED
            ), None
        logits = model(**inputs, use_cache=False).logits
        flat = logits[:, :-1].float().flatten(0, 1)
        loss = F.cross_entropy(flat, labels[:, 1:].flatten(), ignore_index=IGNORED, reduction=how)
        return loss.view(len(labels), -1).sum(1) if by_row else loss, logits
    logits = model(**inputs).logits.float()
    if task == "classify":
        return F.cross_entropy(logits, labels, reduction=how), logits
    values = logits.squeeze(-1)
    return F.mse_loss(values, labels.float(), reduction=how), values


@dataclass(frozen=True)
class Scores:
    """Metrics of one data set, what was predicted for each example (empty for language modelling),
    and the loss of each.
    """

    metrics: dict[str, Any]
    predictions: list[tuple[float, float]]  # (class, probability) or (value, 1.0)
    losses: list[float]  # summed over what is trained of an example


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
    """Score a model on a data set, in eval mode; the mode it was in comes back.

    Args:
        model: with what is to be scored attached and on.
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
    device, was_training = next(model.parameters()).device, model.training
    losses, count = [0.0] * len(examples), 0
    predicted: list[tuple[float, float]] = [(0.0, 0.0)] * (
        0 if task == "causal-lm" else len(examples)
    )
    model.eval()
    try:
        with torch.inference_mode():
            for at in sort_into_batches([len(e.ids) for e in examples], batch_size):
                chosen = [examples[i] for i in at]
                found_losses, out = batch_loss(
                    model, collate(chosen, pad, device), task, by_row=True
                )
                for i, loss in zip(at, found_losses.tolist(), strict=True):
                    losses[i] = loss
                count += sum(e.trained for e in chosen)
                if predicted and out is not None:
                    for i, pair in zip(at, _predictions(out, task), strict=True):
                        predicted[i] = pair
                if progress:
                    progress(len(at))
    finally:
        model.train(was_training)
    loss = sum(losses) / max(count, 1)
    if task == "causal-lm":
        return Scores(
            {"loss": loss, "perplexity": metrics.perplexity(loss), "tokens": count}, [], losses
        )
    targets = [e.target for e in examples]
    values = [value for value, _ in predicted]
    if task == "classify":
        found: dict[str, Any] = metrics.classification(
            [int(t) for t in targets], [int(v) for v in values], classes
        )
    else:
        found = metrics.regression(targets, values)
    return Scores({"loss": loss, **found, "rows": count}, predicted, losses)


def _predictions(out: Tensor, task: str) -> list[tuple[float, float]]:
    """Return (class, probability) or (value, 1.0) of each row."""
    if task == "regress":
        return [(value, 1.0) for value in out.tolist()]
    best = out.softmax(-1).max(-1)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
