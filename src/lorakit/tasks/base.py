"""Task: what is learned from rows, as a loss, predictions and metrics."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.data.encode import IGNORED, Example
from lorakit.data.rows import Rows
from lorakit.models.tasks import TASKS, TaskNames
from lorakit.tasks.metrics import perplexity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = dict[str, Any]  # a model's arguments, and `labels`
# (class, probability), (value, 1.0), the probability of each class, or the class of each token.
Prediction = tuple[float, ...]
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


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Settings by which rows are tokenised.

    Attributes:
        tokenizer: of transformers.
        max_length: tokens of a sequence at most.
        labels: names of the classes, where there are any.
        loss_on: completion or all, for language modelling.
        to_predict: True to take rows whose labels are to be predicted.
    """

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int
    labels: Sequence[str] = ()
    loss_on: str = "completion"
    to_predict: bool = False


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
    def loss(self, model: nn.Module, batch: Batch, *, by_row: bool = False) -> Losses:
        """Return the summed loss of a batch, and the model's outputs; see `batch_loss`."""

    def predict(self, outputs: Tensor, batch: Batch) -> list[Prediction]:
        """Return the prediction of each row, from the outputs of `loss`; none by default."""
        return []

    @abstractmethod
    def metrics(self, scored: Scored) -> dict[str, Any]:
        """Return the metrics of a data set by name, beside its loss."""


def split_labels(batch: Batch) -> tuple[Batch, Tensor]:
    """Return a model's arguments without the labels, and the labels."""
    return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]


def token_loss(logits: Tensor, targets: Tensor, *, by_row: bool) -> Tensor:
    """Return the summed cross-entropy of tokens; of each row with `by_row`.

    Args:
        logits: (batch, length, classes).
        targets: (batch, length) int64; IGNORED where nothing is counted.
        by_row: True for (batch,), False for one sum.
    """
    flat = logits.float().flatten(0, 1)
    reduction = "none" if by_row else "sum"
    loss = F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction=reduction)
    return loss.view(len(targets), -1).sum(1) if by_row else loss


def language_metrics(examples: Sequence[Example], loss: float) -> dict[str, Any]:
    """Return perplexity and the number of trained tokens."""
    count = sum(example.trained for example in examples)
    return {"perplexity": perplexity(loss), "tokens": count}
