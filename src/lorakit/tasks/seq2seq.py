"""Encoder-decoders: an answer is written to a prompt that is read as a whole."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from lorakit.data.encode import Encoding, Example
from lorakit.data.rows import Rows
from lorakit.data.seq2seq import encode_pairs
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


class Seq2Seq(Task):
    """Cross-entropy of each token of the answer, given the prompt and the tokens before it."""

    name = "seq2seq"

    def encode(self, rows: Rows, how: Encoding) -> list[Example]:
        """Tokenise rows, as `encode_pairs` does."""
        return encode_pairs(rows, how)

    def shape_labels(self, shape: Shape, classes: int) -> Tensor:
        """Return a label for each token of the answer, (batch, answer)."""
        return torch.ones(shape.batch, max(1, shape.answer), dtype=torch.long)

    def loss(self, model: nn.Module, batch: Batch, how: LossSettings) -> Losses:
        """Return the loss, and the logits (batch, answer, vocabulary)."""
        inputs, labels = split_labels(batch)
        # The model itself shifts the labels to the right, each family in its own way.
        shift = cast("Any", model).prepare_decoder_input_ids_from_labels
        logits = model(**inputs, decoder_input_ids=shift(labels=labels), use_cache=False).logits
        return token_loss(logits, labels, how), logits

    def metrics(self, scored: Scored) -> Metrics:
        """Return the perplexity, and the number of trained tokens."""
        return language_metrics(scored.examples, scored.loss)
