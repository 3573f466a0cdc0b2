"""Comparison of two models by their logits on the same texts: KL divergence and agreement."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.models.load import Loaded

# The texts that are compared where no data is named.
TEXTS = (
    "Once upon a time, there was a little girl who lived near the sea with her grandmother.",
    "The committee will meet on Tuesday to discuss the budget, which has grown by 12 percent since "
    "last year.",
    "def mean(values):\n    return sum(values) / len(values)",
    "What is the capital of France, and how far is it from Berlin?",
)
LONGEST = 256  # tokens of a text


def batch_texts(loaded: Loaded, texts: Sequence[str]) -> list[Mapping[str, Tensor]]:
    """Return each text as the model's inputs, cut to 256 tokens, on its device."""
    device = next(loaded.model.parameters()).device
    limit = min(LONGEST, loaded.max_length)
    batches: list[Mapping[str, Tensor]] = []
    for text in texts:
        if not text.strip():
            continue
        batch = loaded.tokenizer(text, return_tensors="pt", truncation=True, max_length=limit)
        batches.append(batch.to(device))
    return batches


def compute_logits(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Return the float32 logits of every batch."""
    with torch.inference_mode():
        return [model(**batch).logits.float() for batch in batches]


def compare_logits(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> tuple[float, float]:
    """Return the mean KL(expected, actual) in nats, and the share of equal first choices.

    Both are over all positions of all batches.

    >>> compare_logits([torch.zeros(2, 4)], [torch.zeros(2, 4)])
    (0.0, 1.0)
    """
    divergences: list[Tensor] = []
    agreements: list[Tensor] = []
    for reference, logits in zip(expected, actual, strict=True):
        pointwise = F.kl_div(
            logits.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
        )
        divergences.append(pointwise.sum(-1).flatten())
        agrees = reference.argmax(-1) == logits.argmax(-1)
        agreements.append(agrees.float().flatten())
    # Rounding may give a mean just below 0.
    mean_divergence = max(0.0, float(torch.cat(divergences).mean()))
    return mean_divergence, float(torch.cat(agreements).mean())
