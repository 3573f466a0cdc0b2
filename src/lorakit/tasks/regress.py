"""Regression: a value for each row, a text or a pair of texts."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorakit.data.encode import Example
from lorakit.data.labels import encode_labelled
from lorakit.data.rows import Rows
from lorakit.tasks import metrics
from lorakit.tasks.base import Batch, Encoding, Prediction, Scored, Shape
from lorakit.tasks.labels import LabelTask


class Regress(LabelTask):
    """Squared error of the value of each row."""

    name = "regress"

    def encode(self, rows: Rows, how: Encoding) -> list[Example]:
        """Tokenise rows, as `encode_labelled` does."""
        read = (rows, how.tokenizer, how.max_length)
        return encode_labelled(*read, None, to_predict=how.to_predict)

    def shape_labels(self, shape: Shape, classes: int) -> Tensor:
        """Return a value a row, (batch,)."""
        return torch.ones(shape.batch)

    def compare(self, outputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Return the squared error."""
        return F.mse_loss(outputs.squeeze(-1), labels.float(), reduction=reduction)

    def predict(self, outputs: Tensor, batch: Batch) -> list[Prediction]:
        """Return the value of each row."""
        return [(value, 1.0) for value in outputs.squeeze(-1).tolist()]

    def metrics(self, scored: Scored) -> dict[str, Any]:
        """Return Pearson and Spearman correlation, and the rows."""
        targets = [float(example.target) for example in scored.examples]
        found = [prediction[0] for prediction in scored.predictions]
        return {**metrics.regression(targets, found), "rows": len(targets)}
