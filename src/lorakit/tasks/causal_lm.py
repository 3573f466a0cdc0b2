"""Causal language modelling: the next token of texts, completions and conversations."""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.data.encode import IGNORED, Encoding, Example, encode_causal
from lorakit.data.rows import Rows
from lorakit.models.chunked_loss import chunked_loss, chunked_loss_by_row, find_head
from lorakit.tasks.base import (
    Batch,
    Losses,
    LossSettings,
    Metrics,
    Scored,
    Shape,
    Task,
    language_metrics,
    split_labels,
    token_loss,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CausalLM(Task):
    """Cross-entropy of each trained token, given the tokens before it."""

    name = "causal-lm"

    def encode(self, rows: Rows, how: Encoding) -> list[Example]:
        """Tokenise rows, as `encode_causal` does."""
        return encode_causal(rows, how.tokenizer, how.max_length, how.loss_on)

    def shape_labels(self, shape: Shape, classes: int) -> Tensor:
        """Return a label a token, (batch, length)."""
        return torch.ones(shape.batch, shape.length, dtype=torch.long)

    def loss(self, model: nn.Module, batch: Batch, how: LossSettings) -> Losses:
        """Return the loss, and the logits unless they were computed in chunks."""
        inputs, labels = split_labels(batch)
        head = None
        if how.in_chunks:
            head = find_head(cast("PreTrainedModel", model), inputs["input_ids"])
        if head is not None:
            targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
            compute = chunked_loss_by_row if how.by_row else chunked_loss
            return compute(head, inputs, targets, IGNORED, how.label_smoothing), None
        logits = model(**inputs, use_cache=False).logits
        return token_loss(logits[:, :-1], labels[:, 1:], how), logits

    def metrics(self, scored: Scored) -> Metrics:
        """Return the perplexity, and the number of trained tokens."""
        return language_metrics(scored.examples, scored.loss)
