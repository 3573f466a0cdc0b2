"""How far the answers of two models are apart: KL and agreement of their logits on the same texts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.models.load import Loaded

# Read through both models where no data is named.
TEXTS = (
    "Once upon a time, there was a little girl who lived near the sea with her grandmother.",
    "The committee will meet on Tuesday to discuss the budget, which has grown by 12 percent since last year.",
    "def mean(values):\n    return sum(values) / len(values)",
    "What is the capital of France, and how far is it from Berlin?",
)


def batch_texts(loaded: Loaded, texts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Return each text as the model's inputs, cut to 256 tokens, on its device."""
    device = next(loaded.model.parameters()).device
    limit = min(256, loaded.max_length)
    return [
        loaded.tokenizer(t, return_tensors="pt", truncation=True, max_length=limit).to(device)
        for t in texts
        if t.strip()
    ]


def compute_logits(model: nn.Module, batches: Sequence[dict[str, Any]]) -> list[Tensor]:
    """Return the float32 logits of every batch."""
    with torch.inference_mode():
        return [model(**batch).logits.float() for batch in batches]


def divergence(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> tuple[float, float]:
    """Return KL(wanted, got) in nats a position, on average, and the share of positions with the
    same first choice.

    >>> divergence([torch.zeros(2, 4)], [torch.zeros(2, 4)])
    (0.0, 1.0)
    """
    pairs = list(zip(wanted, got, strict=True))
    kl = [
        F.kl_div(g.log_softmax(-1), w.log_softmax(-1), log_target=True, reduction="none").sum(-1)
        for w, g in pairs
    ]
    same = [(w.argmax(-1) == g.argmax(-1)).float() for w, g in pairs]
    return max(0.0, float(torch.cat([k.flatten() for k in kl]).mean())), float(
        torch.cat([s.flatten() for s in same]).mean()
    )
