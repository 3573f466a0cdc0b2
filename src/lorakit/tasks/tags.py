"""Tags of tokens, such as named entities."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lorakit.data.encode import IGNORED, Encoding, Example
from lorakit.data.rows import Rows
from lorakit.data.tags import encode_tagged, list_tags
from lorakit.tasks import metrics
from lorakit.tasks.base import (
    Batch,
    Losses,
    LossSettings,
    Metrics,
    Prediction,
    Predictions,
    Scored,
    Shape,
    Task,
    split_labels,
    token_loss,
)


class Tokens(Task):
    """Cross-entropy of the tag of each token."""

    name = "tokens"

    def list_classes(self, rows: Rows) -> list[str]:
        """Return the tags that occur: O first, and the tags of one entity beside each other."""
        return list_tags(rows)

    def encode(self, rows: Rows, how: Encoding) -> list[Example]:
        """Tokenise rows, as `encode_tagged` does."""
        return encode_tagged(rows, how)

    def shape_labels(self, shape: Shape, classes: int) -> Tensor:
        """Return a tag a token, (batch, length)."""
        return torch.ones(shape.batch, shape.length, dtype=torch.long)

    def loss(self, model: nn.Module, batch: Batch, how: LossSettings) -> Losses:
        """Return the loss, and the logits (batch, length, tags)."""
        inputs, labels = split_labels(batch)
        logits = model(**inputs).logits
        return token_loss(logits, labels, how), logits

    def predict(self, outputs: Tensor, batch: Batch) -> Predictions:
        """Return the most likely tag of each token that has one in the batch."""
        best, counted = outputs.argmax(-1), batch["labels"] != IGNORED
        return [tuple(row[own].tolist()) for row, own in zip(best, counted, strict=True)]

    def describe(self, prediction: Prediction, labels: Sequence[str]) -> Metrics:
        """Return the name of each tag."""
        return {"tags": [labels[int(tag)] for tag in prediction]}

    def metrics(self, scored: Scored) -> Metrics:
        """Return accuracy, F1, precision and recall, and the rows.

        The last three are of entities where the tags are those of entities, else means over tags.
        """
        targets = [[tag for tag in example.tags if tag != IGNORED] for example in scored.examples]
        found = [[int(tag) for tag in prediction] for prediction in scored.predictions]
        return metrics.tags(targets, found, scored.labels)
