"""Several labels for each text, or none."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorakit.data.encode import Example
from lorakit.data.labels import encode_several, list_several
from lorakit.data.rows import Rows
from lorakit.tasks import metrics
from lorakit.tasks.base import Batch, Encoding, Prediction, Scored, Shape
from lorakit.tasks.labels import LabelTask


class MultiLabel(LabelTask):
    """Binary cross-entropy, the mean over the classes of a row."""

    name = "multi-label"

    def list_classes(self, rows: Rows) -> list[str]:
        """Return all labels that occur: numbers in their order, then words sorted."""
        return list_several(rows)

    def encode(self, rows: Rows, how: Encoding) -> list[Example]:
        """Tokenise rows, as `encode_several` does."""
        read = (rows, how.tokenizer, how.max_length)
        return encode_several(*read, how.labels, to_predict=how.to_predict)

    def shape_labels(self, shape: Shape, classes: int) -> Tensor:
        """Return a flag for each class of a row, (batch, classes)."""
        return torch.ones(shape.batch, classes)

    def compare(self, outputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Return the binary cross-entropy."""
        losses = F.binary_cross_entropy_with_logits(outputs, labels, reduction="none").mean(-1)
        return losses if reduction == "none" else losses.sum()

    def predict(self, outputs: Tensor, batch: Batch) -> list[Prediction]:
        """Return the probability of each class of each row."""
        return [tuple(row) for row in outputs.sigmoid().tolist()]

    def metrics(self, scored: Scored) -> dict[str, Any]:
        """Return exact match as accuracy, F1 (micro and macro), precision, recall, and the rows."""
        targets = [example.flags for example in scored.examples]
        found = [[probability > 0.5 for probability in row] for row in scored.predictions]
        return {**metrics.several_labels(targets, found), "rows": len(targets)}
