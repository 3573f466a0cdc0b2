"""The linear head: a logistic regression on the features of the frozen encoder.

It is the baseline that an adapter has to exceed.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np
import torch
from torch import Tensor, nn

from lorakit.data.batches import collate, sort_into_batches
from lorakit.data.encode import Example
from lorakit.models.padding import leaks_padding
from lorakit.tasks.metrics import classification

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from transformers import PreTrainedModel

STRENGTHS = (0.003, 0.03, 0.3)  # inverse regularisation to choose from, C of scikit-learn
VALIDATION = 10  # the last tenth of the training rows chooses the strength
BATCH_SIZE = 64

Progress = Callable[[int], None]


class LinearHeadScores(TypedDict):
    """Scores of a linear head on held-out rows; `features` is the width of its input."""

    accuracy: float
    f1: float
    precision: float
    recall: float
    matthews: float
    rows: int
    features: int


def encoder_features(
    encoder: nn.Module,
    examples: Sequence[Example],
    pad: int,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return features of each example: first token, mean over tokens, and the pooled output if any.

    Args:
        encoder: of transformers, without a head, with the adapters that are enabled; where padding
            would change its features, it gets rows of one length at a time.
        examples: encoded rows.
        pad: id that fills batches.
        progress: called with the number of examples done since the last call.

    Returns:
        (rows, 2 or 3 times the hidden size) float32.
    """
    features: list[np.ndarray] = [np.empty(0)] * len(examples)
    device = next(encoder.parameters()).device
    lengths = [len(example.ids) for example in examples]
    unpadded = len(set(lengths)) > 1 and leaks_padding(cast("PreTrainedModel", encoder), pad)
    with torch.inference_mode():
        for positions in sort_into_batches(lengths, BATCH_SIZE, unpadded=unpadded):
            batch = collate([examples[i] for i in positions], pad, device)
            batch.pop("labels")
            rows = _features_of_batch(encoder, batch).cpu().numpy()
            for position, row in zip(positions, rows, strict=True):
                features[position] = row
            if progress:
                progress(len(positions))
    return np.stack(features)


def _features_of_batch(encoder: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    outputs = encoder(**batch)
    hidden: Tensor = outputs.last_hidden_state.float()
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    parts = [hidden[:, 0], mean]
    pooled: Tensor | None = getattr(outputs, "pooler_output", None)
    if pooled is not None:
        parts.append(pooled.float())
    return torch.cat(parts, -1)


def fit_linear_head(
    encoder: nn.Module,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    *,
    pad: int,
    classes: int,
    progress: Progress | None = None,
) -> LinearHeadScores:
    """Fit a logistic regression on the frozen encoder's features, and score it on held-out rows.

    Args:
        encoder: of transformers, without a head and with no adapter enabled.
        examples: to fit on; the last tenth of them chooses the strength of regularisation.
        held_out: to score on.
        pad: id that fills batches.
        classes: number of classes.
        progress: called with the number of examples done since the last call.
    """
    from sklearn.preprocessing import StandardScaler

    features = encoder_features(encoder, examples, pad, progress)
    held_out_features = encoder_features(encoder, held_out, pad, progress)
    scaler = StandardScaler().fit(features)
    scaled = np.asarray(scaler.transform(features))
    classifier = _fit_best(scaled, _targets(examples))
    predictions = np.asarray(classifier.predict(scaler.transform(held_out_features)))
    scores = classification(_targets(held_out), predictions.tolist(), classes)
    return {
        "accuracy": scores["accuracy"],
        "f1": scores["f1"],
        "precision": scores["precision"],
        "recall": scores["recall"],
        "matthews": scores["matthews"],
        "rows": len(held_out),
        "features": features.shape[1],
    }


def _targets(examples: Sequence[Example]) -> list[int]:
    return [int(example.target) for example in examples]


def _fit_best(features: np.ndarray, targets: Sequence[int]) -> "LogisticRegression":
    """Return the regression on all rows, with the strength that is best on the last tenth."""
    first = len(targets) * (VALIDATION - 1) // VALIDATION
    scores: dict[float, float] = {}
    for strength in STRENGTHS:
        classifier = _fit(features[:first], targets[:first], strength)
        scores[strength] = float(classifier.score(features[first:], targets[first:]))
    best = max(STRENGTHS, key=lambda strength: scores[strength])
    return _fit(features, targets, best)


def _fit(features: np.ndarray, targets: Sequence[int], strength: float) -> "LogisticRegression":
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=2000).fit(features, targets)
