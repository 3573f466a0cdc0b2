"""Attention maps of a model without and with its adapters, and the distance between them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, cast

import torch
from torch import Tensor, nn

from lorakit.errors import ModelError, SpecError
from lorakit.inject.attach import enable, enabled
from lorakit.inject.state import get_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The implementation of transformers that returns its maps; the fast kernels never compute them.
EXACT_IMPLEMENTATION = "eager"
SPACE_MARKS = ("▁", "Ġ")  # of SentencePiece and of byte-level BPE
SMALLEST = 1e-300  # divisor of a probability, in place of zero


class AttentionChange(TypedDict):
    """The attention of one token to another, without and with the adapters."""

    token: str
    at: str
    before: float
    after: float


class AttentionReport(TypedDict):
    """An AttentionComparison as JSON holds it; the maps are those of the head that changed most."""

    tokens: list[str]
    distance: float
    unit: str
    by_head: list[list[float]]
    most: list[int]
    moves: list[AttentionChange]
    before: list[list[float]]
    after: list[list[float]]


@dataclass(frozen=True)
class AttentionComparison:
    """The attention maps of one text without and with the enabled adapters.

    Attributes:
        tokens: of the text, in order.
        before: (layers, heads, tokens, tokens) float64: the attention of the token of a row to the
            token of a column; rows sum to 1.
        after: the same with the adapters.
        distance: (layers, heads) float64, in bits from 0 (equal maps) to 1 (attention to different
            tokens only).
    """

    tokens: tuple[str, ...]
    before: Tensor
    after: Tensor
    distance: Tensor

    @property
    def mean_distance(self) -> float:
        """The distance, as a mean over all layers and heads."""
        return float(self.distance.mean())

    @property
    def most_changed_head(self) -> tuple[int, int]:
        """The layer and the head with the largest distance, counted from 0."""
        layer, head = divmod(int(self.distance.argmax()), self.distance.shape[1])
        return layer, head

    def largest_changes(self, layer: int, head: int, count: int = 5) -> list[AttentionChange]:
        """Return the largest changes of attention in one head, the largest first.

        Args:
            layer: counted from 0.
            head: counted from 0.
            count: number of changes.
        """
        before, after = self.before[layer, head], self.after[layer, head]
        sizes = (after - before).abs().flatten()
        cells: list[int] = sizes.argsort(descending=True)[:count].tolist()
        changes: list[AttentionChange] = []
        for cell in cells:
            row, column = divmod(cell, len(self.tokens))
            change: AttentionChange = {
                "token": self.tokens[row],
                "at": self.tokens[column],
                "before": float(before[row, column]),
                "after": float(after[row, column]),
            }
            changes.append(change)
        return changes

    def to_dict(self) -> AttentionReport:
        """Return plain values, as JSON holds them."""
        layer, head = self.most_changed_head
        return {
            "tokens": list(self.tokens),
            "distance": self.mean_distance,
            "unit": "bits",
            "by_head": self.distance.tolist(),
            "most": [layer, head],
            "moves": self.largest_changes(layer, head),
            "before": self.before[layer, head].tolist(),
            "after": self.after[layer, head].tolist(),
        }


def compare_attention(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase", text: str
) -> AttentionComparison:
    """Return a model's attention maps without and with its enabled adapters, and their distance.

    The distance of a head is the Jensen-Shannon divergence of its two maps, as a mean over the
    tokens that can attend to more than one token: in a causal model the first token sees only
    itself and is left out.

    Args:
        model: of transformers, an encoder or a decoder, with an enabled adapter; its state does not
            change.
        tokenizer: of the model.
        text: one text, no longer than the model's context.

    Raises:
        AdapterNameError: nothing is attached.
        SpecError: no adapter is enabled, or the text has too few tokens, or too many.
        ModelError: the model returns no maps.

    Cost: two forward passes of one text with the exact attention: tokens x tokens numbers a head.
    """
    get_state(model)
    weights = enabled(model)
    if not weights:
        raise SpecError(
            "No adapter is enabled, so there is nothing to compare.",
            advice="Enable one: enable(model, NAME).",
        )
    inputs = tokenizer(text, return_tensors="pt").to(next(model.parameters()).device)
    tokens = readable_tokens(tokenizer, inputs["input_ids"][0].tolist())
    _check_length(model, text, tokens)
    after = attention_maps(model, inputs)
    enable(model, None)
    try:
        before = attention_maps(model, inputs)
    finally:
        enable(model, weights)
    is_visible = (before > 0) | (after > 0)
    has_choice = is_visible.sum(-1).amax((0, 1)) > 1
    distances = divergence(before, after)[..., has_choice]
    return AttentionComparison(tuple(tokens), before, after, distances.mean(-1))


def _check_length(model: nn.Module, text: str, tokens: Sequence[str]) -> None:
    config = getattr(model, "config", None)
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and len(tokens) > longest:
        raise SpecError(
            f"The text has {len(tokens):,} tokens; the model takes at most {longest:,}.",
            advice="Shorten it.",
        )
    if not text.strip() or len(tokens) < 2:
        raise SpecError(
            f"The text {text!r} is too short: attention needs at least 2 tokens of text.",
            advice="Give a sentence.",
        )


def attention_maps(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the attention maps of one text, with the adapters that are enabled.

    Args:
        model: of transformers, an encoder or a decoder.
        inputs: the tokenizer's output for one text.

    Returns:
        (layers, heads, tokens, tokens) float64 on the CPU: rows are the attending tokens. Layers
        without maps (of another kind than attention) are left out.

    Raises:
        ModelError: it returns none, or layers whose maps differ in shape.
    """
    attentions: tuple[Tensor | None, ...] = ()
    # An encoder-decoder needs a second text, and has maps of three kinds.
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        with exact_attention(model), torch.no_grad():
            outputs = model(**inputs, output_attentions=True)
        attentions = getattr(outputs, "attentions", None) or ()
    layers = [maps[0] for maps in attentions if maps is not None and maps.ndim == 4]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} returns no attention maps.",
            advice="Encoders and decoders of transformers return them; encoder-decoder models and "
            "models without attention do not.",
        )
    shapes = {tuple(layer.shape) for layer in layers}
    if len(shapes) > 1:
        raise ModelError(
            f"The attention maps of {type(model).__name__} differ in shape: {sorted(shapes)}.",
            advice="All layers must have the same number of heads and tokens.",
        )
    return torch.stack(layers).double().cpu()


def divergence(P: Tensor, Q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of distributions in bits, from 0 (equal) to 1.

    It is the mean of the divergences of both distributions from their mean M: symmetric, and finite
    if a probability is zero.

    Args:
        P: (..., n), each last row at least 0 with sum 1.
        Q: likewise.

    Returns:
        (...) float64; 1 if the distributions share nothing.

    Source: Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on Information
        Theory 37 (1), 1991 (P, Q).

    >>> P = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    >>> Q = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> [round(x, 3) for x in divergence(P, Q).tolist()]
    [0.0, 1.0, 0.311]
    """
    P, Q = P.double(), Q.double()
    M = (P + Q) / 2
    total = _relative_entropy(P, M) + _relative_entropy(Q, M)
    two = torch.tensor(2.0, dtype=torch.float64)
    return (total / (2 * two.log())).clamp(0, 1)


def _relative_entropy(P: Tensor, M: Tensor) -> Tensor:
    """Return the relative entropy of P from M in nats.

    Source: Kullback and Leibler, 1951 (P).
    """
    ratio = P / M.clamp_min(SMALLEST)
    return torch.special.xlogy(P, ratio).sum(-1)


@contextmanager
def exact_attention(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, with the attention that returns its maps, within the block.

    Raises:
        ModelError: the model is not of transformers.
    """
    config = getattr(model, "config", None)
    if config is None or not callable(getattr(model, "set_attn_implementation", None)):
        raise ModelError(
            f"{type(model).__name__} is not a model of transformers, so its attention maps are "
            "not available."
        )
    transformer = cast("PreTrainedModel", model)
    implementation: str = config._attn_implementation
    was_training = transformer.training
    transformer.eval()
    try:
        transformer.set_attn_implementation(EXACT_IMPLEMENTATION)
        yield
    finally:
        transformer.set_attn_implementation(implementation)
        transformer.train(was_training)


def readable_tokens(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[str]:
    """Return tokens for display: without the tokenizer's marks for spaces; ␣ for a space alone.

    Args:
        tokenizer: of transformers.
        ids: of the tokens.
    """
    tokens: list[str] = []
    for token in tokenizer.convert_ids_to_tokens(ids):
        for mark in SPACE_MARKS:
            token = token.replace(mark, " ")
        tokens.append(token.strip() or "␣")
    return tokens
