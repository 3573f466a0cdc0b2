"""A task with one target for each row: a class, several, or a value."""

from abc import abstractmethod

from torch import Tensor, nn

from lorakit.tasks.base import Batch, Losses, Task, split_labels


class LabelTask(Task):
    """A task with one target for each row."""

    def loss(self, model: nn.Module, batch: Batch, *, by_row: bool = False) -> Losses:
        """Return the loss, and the outputs (batch, classes) in float32."""
        inputs, labels = split_labels(batch)
        outputs = model(**inputs).logits.float()
        reduction = "none" if by_row else "sum"
        return self.compare(outputs, labels, reduction), outputs

    @abstractmethod
    def compare(self, outputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Return the loss of rows: (batch,) for the reduction "none", their sum for "sum"."""
