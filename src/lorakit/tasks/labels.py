"""A task with one target for each row: a class, several, or a value."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from lorakit.data.encode import Encoding, Example
from lorakit.data.labels import encode_labelled
from lorakit.data.rows import Rows
from lorakit.tasks.base import Batch, Losses, LossSettings, Shape, Task, split_labels


class LabelTask(Task):
    """A task with one target for each row."""

    def loss(self, model: nn.Module, batch: Batch, how: LossSettings) -> Losses:
        """Return the loss, and the outputs (batch, classes) in float32."""
        inputs, labels = split_labels(batch)
        outputs = model(**inputs).logits.float()
        return self.compare(outputs, labels, how), outputs

    def encode(self, rows: Rows, how: Encoding) -> list[Example]:
        """Tokenise rows, as `encode_labelled` does."""
        return encode_labelled(
            rows,
            how.tokenizer,
            how.max_length,
            how.labels or None,
            to_predict=how.to_predict,
        )

    def shape_labels(self, shape: Shape, classes: int) -> Tensor:
        """Return a class or a value a row, (batch,)."""
        return torch.ones(shape.batch, dtype=torch.long)

    @abstractmethod
    def compare(self, outputs: Tensor, labels: Tensor, how: LossSettings) -> Tensor:
        """Return the loss of rows: (batch,) if it is by row, else their sum."""
