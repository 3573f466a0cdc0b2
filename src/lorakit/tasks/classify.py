"""Classification: a class for each row, a text or a pair of texts."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from lorakit.data.labels import list_labels
from lorakit.data.rows import Rows
from lorakit.tasks import metrics
from lorakit.tasks.base import Batch, LossSettings, Metrics, Prediction, Predictions, Scored
from lorakit.tasks.labels import LabelTask


class Classify(LabelTask):
    """Cross-entropy of the class of each row."""

    name = "classify"
    deciding_metric = "accuracy"

    def list_classes(self, rows: Rows) -> list[str]:
        """Return the labels: numbers in their order, then words sorted."""
        return list_labels(rows)

    def compare(self, outputs: Tensor, labels: Tensor, how: LossSettings) -> Tensor:
        """Return the cross-entropy."""
        smoothing = how.label_smoothing
        reduction = how.reduction
        return F.cross_entropy(outputs, labels, reduction=reduction, label_smoothing=smoothing)

    def predict(self, outputs: Tensor, batch: Batch) -> Predictions:
        """Return the most likely class of each row, and its probability."""
        best = outputs.softmax(-1).max(-1)
        classes = best.indices.tolist()
        probabilities = best.values.tolist()
        return list(zip(classes, probabilities, strict=True))

    def describe(self, prediction: Prediction, labels: Sequence[str]) -> Metrics:
        """Return the name of the class, and its probability."""
        position, probability = prediction
        return {"prediction": labels[int(position)], "probability": round(probability, 6)}

    def metrics(self, scored: Scored) -> Metrics:
        """Return accuracy, F1, precision, recall, Matthews correlation."""
        targets = [int(example.target) for example in scored.examples]
        found = [int(prediction[0]) for prediction in scored.predictions]
        count = len(scored.labels)
        return metrics.classification(targets, found, count)
