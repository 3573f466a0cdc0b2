"""Classification: a class for each row, a text or a pair of texts."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorakit.data.encode import Example
from lorakit.data.labels import encode_labelled, list_labels
from lorakit.data.rows import Rows
from lorakit.tasks import metrics
from lorakit.tasks.base import Batch, Encoding, Prediction, Scored, Shape
from lorakit.tasks.labels import LabelTask


class Classify(LabelTask):
    """Cross-entropy of the class of each row."""

    name = "classify"
    deciding_metric = "accuracy"

    def list_classes(self, rows: Rows) -> list[str]:
        """Return the labels: numbers in their order, then words sorted."""
        return list_labels(rows)

    def encode(self, rows: Rows, how: Encoding) -> list[Example]:
        """Tokenise rows, as `encode_labelled` does."""
        read = (rows, how.tokenizer, how.max_length)
        return encode_labelled(*read, how.labels, to_predict=how.to_predict)

    def shape_labels(self, shape: Shape, classes: int) -> Tensor:
        """Return a class a row, (batch,)."""
        return torch.ones(shape.batch, dtype=torch.long)

    def compare(self, outputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Return the cross-entropy."""
        return F.cross_entropy(outputs, labels, reduction=reduction)

    def predict(self, outputs: Tensor, batch: Batch) -> list[Prediction]:
        """Return the most likely class of each row, and its probability."""
        best = outputs.softmax(-1).max(-1)
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    def metrics(self, scored: Scored) -> dict[str, Any]:
        """Return accuracy, F1, precision, recall, Matthews correlation, and the rows."""
        targets = [int(example.target) for example in scored.examples]
        found = [int(prediction[0]) for prediction in scored.predictions]
        scores = metrics.classification(targets, found, len(scored.labels))
        return {**scores, "rows": len(targets)}
