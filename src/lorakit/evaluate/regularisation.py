"""The loss of training: that of a batch, with label smoothing."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lorakit.evaluate.score import batch_loss


@dataclass(frozen=True, kw_only=True)
class Regularisation:
    """Terms and changes of the loss of training; an evaluation has none of them.

    Attributes:
        label_smoothing: share of the target that is spread over all classes or tokens.
    """

    label_smoothing: float = 0.0


NONE = Regularisation()


def training_loss(
    model: nn.Module, batch: dict[str, Any], task: str, regularisation: Regularisation = NONE
) -> Tensor:
    """Return the summed loss of a batch that training minimises.

    Args:
        model: as for `batch_loss`.
        batch: as for `batch_loss`.
        task: as for `batch_loss`.
        regularisation: what is added to the plain loss.

    Returns:
        The sum, float32 (divide it by the count of trained tokens or rows).
    """
    return batch_loss(model, batch, task, label_smoothing=regularisation.label_smoothing)[0]
