"""Task: what is learned from rows, as a loss, predictions and metrics."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.data.encode import IGNORED, Encoding, Example
from lorakit.data.rows import Rows
from lorakit.models.tasks import TASKS, TaskNames
from lorakit.tasks.metrics import perplexity

Batch = dict[str, Any]  # a model's arguments, and `labels`
# (class, probability), (value, 1.0), the probability of each class, or the class of each token.
Prediction = tuple[float, ...]
Predictions = list[Prediction]
Metrics = Mapping[str, Any]
Losses = tuple[Tensor, Tensor | None]  # and the outputs that predictions are made of


@dataclass(frozen=True)
class Shape:
    """The shape of a batch.

    Attributes:
        batch: sequences.
        length: tokens of each, padding included.
        answer: tokens of each answer that a decoder writes; 0 without one.
    """

    batch: int
    length: int
    answer: int = 0


@dataclass(frozen=True)
class LossSettings:
    """Settings of the loss of a batch.

    Attributes:
        by_row: True for the sum of each row, (batch,), instead of that of all.
        label_smoothing: share of the target that is spread over all classes or tokens.
        in_chunks: False to compute all logits at once, and return them.
    """

    by_row: bool = False
    label_smoothing: float = 0.0
    in_chunks: bool = True

    @property
    def reduction(self) -> str:
        """The name of it in torch."""
        return "none" if self.by_row else "sum"


@dataclass(frozen=True)
class Scored:
    """A data set that a model was scored on.

    Attributes:
        examples: its sequences.
        predictions: of each of them; empty for language modelling.
        loss: mean over all that is trained.
        labels: names of the classes.
    """

    examples: Sequence[Example]
    predictions: Sequence[Prediction]
    loss: float
    labels: Sequence[str]


class Task(ABC):
    """One kind of task, apart from the model that learns it.

    Attributes:
        name: as `--task` has it.
        deciding_metric: the metric by which adapters of different ranks are compared.
    """

    name: str
    deciding_metric = "loss"

    @property
    def traced(self) -> "Task":
        """The task by which a step is planned on shapes alone; this one by default."""
        return self

    @property
    def names(self) -> TaskNames:
        """Its names elsewhere, and the head that it needs."""
        return TASKS[self.name]

    def list_classes(self, rows: Rows) -> list[str]:
        """Return the names of the classes, in the order of the model's outputs; none by default."""
        return []

    @abstractmethod
    def encode(self, rows: Rows, how: Encoding) -> list[Example]:
        """Tokenise checked rows.

        Raises:
            DataError: rows that do not suit the task; each is named.
        """

    @abstractmethod
    def shape_labels(self, shape: Shape, classes: int) -> Tensor:
        """Return labels of a batch, to plan with: right in shape and dtype, ones throughout.

        Args:
            shape: of the batch.
            classes: number of the model's classes.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, how: LossSettings) -> Losses:
        """Return the summed loss of a batch, and the model's outputs; see `batch_loss`."""

    def predict(self, outputs: Tensor, batch: Batch) -> Predictions:
        """Return the prediction of each row, from the outputs of `loss`; none by default."""
        return []

    def describe(self, prediction: Prediction, labels: Sequence[str]) -> Metrics:
        """Return a prediction as JSON holds it; by default its value."""
        return {"prediction": prediction[0]}

    def take_metrics(self) -> Mapping[str, float]:
        """Return metrics of the steps since the last call; none by default."""
        return {}

    @abstractmethod
    def metrics(self, scored: Scored) -> Metrics:
        """Return the metrics of a data set by name, beside its loss."""


def split_labels(batch: Batch) -> tuple[Batch, Tensor]:
    """Return a model's arguments without the labels, and the labels."""
    return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]


def token_loss(logits: Tensor, targets: Tensor, how: LossSettings) -> Tensor:
    """Return the summed cross-entropy of tokens, or that of each row.

    Args:
        logits: (batch, length, classes).
        targets: (batch, length) int64; IGNORED where nothing is counted.
        how: (batch,) if it is by row, else one sum.
    """
    loss = F.cross_entropy(
        logits.float().flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction=how.reduction,
        label_smoothing=how.label_smoothing,
    )
    return loss.view(len(targets), -1).sum(1) if how.by_row else loss


def language_metrics(examples: Sequence[Example], loss: float) -> Metrics:
    """Return perplexity and the number of trained tokens."""
    count = sum(example.trained for example in examples)
    return {"perplexity": perplexity(loss), "tokens": count}
