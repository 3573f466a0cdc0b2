"""The linear head: a logistic regression on what the frozen encoder gives. The least that an
adapter must beat.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lorakit.data.batches import collate, sort_into_batches
from lorakit.data.encode import Example
from lorakit.evaluate.metrics import classification

STRENGTHS = (
    0.003,
    0.03,
    0.3,
)  # of regularisation, C of scikit-learn; the best on a tenth of the training rows is taken


def encoder_features(
    encoder: Any,
    examples: Sequence[Example],
    pad: int,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return what an encoder gives for each example: first token, mean over tokens, and pooled
    output, side by side.

    Args:
        encoder: of transformers, without a head; what is attached and on counts.
        examples: encoded rows.
        pad: id that fills batches.
        progress: called with the number of examples done since the last call.

    Returns:
        (rows, 2 or 3 times the hidden size) float32.
    """
    out: list[Any] = [None] * len(examples)
    device = next(encoder.parameters()).device
    with torch.inference_mode():
        for at in sort_into_batches([len(e.ids) for e in examples], 64):
            batch = collate([examples[i] for i in at], pad, device)
            batch.pop("labels")
            given = encoder(**batch)
            hidden, mask = given.last_hidden_state.float(), batch["attention_mask"].unsqueeze(-1)
            parts = [hidden[:, 0], (hidden * mask).sum(1) / mask.sum(1)]
            pooled = getattr(given, "pooler_output", None)
            rows = (
                torch.cat([*parts, *([pooled.float()] if pooled is not None else [])], -1)
                .cpu()
                .numpy()
            )
            for i, row in zip(at, rows, strict=True):
                out[i] = row
            if progress:
                progress(len(at))
    return np.stack(out)


def fit_linear_head(
    encoder: Any,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    *,
    pad: int,
    classes: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Fit a logistic regression on the frozen encoder's features, and score it on held-out rows.

    Args:
        encoder: of transformers, without a head and with no adapter on.
        examples: to fit on; the last tenth of them chooses the strength of regularisation.
        held_out: to score on.
        pad: id that fills batches.
        classes: number of classes.
        progress: called with the number of examples done since the last call.

    Returns:
        accuracy, f1, precision, recall, matthews, rows, and features: the width of what the
        regression sees.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    seen, asked = (encoder_features(encoder, part, pad, progress) for part in (examples, held_out))
    scaler = StandardScaler().fit(seen)
    seen, asked = scaler.transform(seen), scaler.transform(asked)
    targets, cut = [int(e.target) for e in examples], len(examples) * 9 // 10

    def fitted(strength: float, rows: int) -> Any:
        return LogisticRegression(C=strength, max_iter=2000).fit(seen[:rows], targets[:rows])

    best = max(STRENGTHS, key=lambda c: fitted(c, cut).score(seen[cut:], targets[cut:]))
    found = fitted(best, len(examples)).predict(asked)
    return {
        **classification([int(e.target) for e in held_out], found.tolist(), classes),
        "rows": len(held_out),
        "features": len(seen[0]),
    }
