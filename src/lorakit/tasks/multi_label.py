"""Several labels for each text, or none."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lorakit.data.encode import Encoding, Example
from lorakit.data.labels import encode_several, list_several
from lorakit.data.rows import Rows
from lorakit.tasks import metrics
from lorakit.tasks.base import Batch, LossSettings, Metrics, Prediction, Predictions, Scored, Shape
from lorakit.tasks.labels import LabelTask


class MultiLabel(LabelTask):
    """Binary cross-entropy, the mean over the classes of a row."""

    name = "multi-label"

    def list_classes(self, rows: Rows) -> list[str]:
        """Return all labels that occur: numbers in their order, then words sorted."""
        return list_several(rows)

    def encode(self, rows: Rows, how: Encoding) -> list[Example]:
        """Tokenise rows, as `encode_several` does."""
        return encode_several(rows, how)

    def shape_labels(self, shape: Shape, classes: int) -> Tensor:
        """Return a flag for each class of a row, (batch, classes)."""
        return torch.ones(shape.batch, classes)

    def compare(self, outputs: Tensor, labels: Tensor, how: LossSettings) -> Tensor:
        """Return the binary cross-entropy."""
        compute = F.binary_cross_entropy_with_logits
        losses = compute(outputs, labels, reduction="none").mean(-1)
        return losses if how.by_row else losses.sum()

    def predict(self, outputs: Tensor, batch: Batch) -> Predictions:
        """Return the probability of each class of each row."""
        return [tuple(row) for row in outputs.sigmoid().tolist()]

    def describe(self, prediction: Prediction, labels: Sequence[str]) -> Metrics:
        """Return the labels that are more likely than not, and the probability of each label."""
        chosen: list[str] = []
        probabilities: dict[str, float] = {}
        for label, probability in zip(labels, prediction, strict=True):
            probabilities[label] = round(probability, 6)
            if is_chosen(probability):
                chosen.append(label)
        return {"labels": chosen, "probabilities": probabilities}

    def metrics(self, scored: Scored) -> Metrics:
        """Return exact match as accuracy, F1 (micro and macro), precision, recall."""
        targets = [example.flags for example in scored.examples]
        found = [list(map(is_chosen, row)) for row in scored.predictions]
        return metrics.several_labels(targets, found)


def is_chosen(probability: float) -> bool:
    """Return True for a label that is more likely than not."""
    return probability > 0.5
