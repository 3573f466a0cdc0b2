"""Regression: a value for each row, a text or a pair of texts."""

from torch import Tensor
from torch.nn import functional as F

from lorakit.tasks import metrics
from lorakit.tasks.base import Batch, LossSettings, Metrics, Predictions, Scored
from lorakit.tasks.labels import LabelTask


class Regress(LabelTask):
    """Squared error of the value of each row."""

    name = "regress"

    def compare(self, outputs: Tensor, labels: Tensor, how: LossSettings) -> Tensor:
        """Return the squared error."""
        return F.mse_loss(outputs.squeeze(-1), labels.float(), reduction=how.reduction)

    def predict(self, outputs: Tensor, batch: Batch) -> Predictions:
        """Return the value of each row."""
        return [(value, 1.0) for value in outputs.squeeze(-1).tolist()]

    def metrics(self, scored: Scored) -> Metrics:
        """Return Pearson and Spearman correlation."""
        targets = [float(example.target) for example in scored.examples]
        found = [prediction[0] for prediction in scored.predictions]
        return metrics.regression(targets, found)
