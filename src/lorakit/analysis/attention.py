"""Where a model looks: its attention maps without and with adapters, and how far apart the two are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.errors import ModelError, SpecError
from lorakit.inject.attach import enable, enabled
from lorakit.inject.state import get_state

EXACT = "eager"  # the attention of transformers that keeps its maps; fast kernels never make them


@dataclass(frozen=True)
class AttentionComparison:
    """The maps of one text without and with the adapters that are on, and what lies between them.

    Attributes:
        tokens: of the text, in order.
        before: (layers, heads, tokens, tokens) float64: how much the token of a row looks at that
            of a column; rows sum to 1.
        after: the same with the adapters.
        distance: (layers, heads) float64, bits from 0 (alike) to 1 (they look at different tokens
            throughout).
    """

    tokens: tuple[str, ...]
    before: Tensor
    after: Tensor
    distance: Tensor

    @property
    def mean_distance(self) -> float:
        """The distance, over all layers and heads."""
        return float(self.distance.mean())

    @property
    def most_changed_head(self) -> tuple[int, int]:
        """The layer and the head that moved most, counted from 0."""
        layer, head = divmod(int(self.distance.argmax()), self.distance.shape[1])
        return layer, head

    def largest_changes(self, layer: int, head: int, count: int = 5) -> list[dict[str, Any]]:
        """Return where attention changed most in one head: which token, at which, before, after;
        the largest first.

        Args:
            layer: counted from 0.
            head: counted from 0.
            count: how many.
        """
        before, after = self.before[layer, head], self.after[layer, head]
        places = (after - before).abs().flatten().argsort(descending=True)[:count].tolist()
        return [
            {
                "token": self.tokens[q],
                "at": self.tokens[k],
                "before": float(before[q, k]),
                "after": float(after[q, k]),
            }
            for q, k in (divmod(place, len(self.tokens)) for place in places)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them; the maps are those of the head that moved most."""
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


def compare_attention(model: nn.Module, tokenizer: Any, text: str) -> AttentionComparison:
    """Return a model's attention maps for a text without its adapters and with those that are on,
    and their distance.

    The distance of a head is the Jensen-Shannon divergence of its two maps, the mean over the
    tokens that had a choice: in a causal model the first token sees itself alone, and counts for
        nothing.

    Args:
        model: of transformers, an encoder or a decoder, with an adapter attached and on; it is left
            as it was.
        tokenizer: of the model.
        text: one text, no longer than the model takes.

    Raises:
        AdapterNameError: nothing is attached.
        SpecError: no adapter is on, or the text has no tokens, or too many.
        ModelError: the model gives no maps.

    Cost: two forwards of one text, by the attention that keeps its maps: tokens x tokens numbers a
        head.
    """
    get_state(model)
    on = enabled(model)
    if not on:
        raise SpecError(
            "No adapter is on, so nothing could have moved.",
            advice="Switch one on: enable(model, NAME).",
        )
    inputs = tokenizer(text, return_tensors="pt").to(next(model.parameters()).device)
    tokens = tuple(readable_tokens(tokenizer, inputs["input_ids"][0].tolist()))
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if longest is not None and len(tokens) > longest:
        raise SpecError(
            f"The text has {len(tokens):,} tokens; the model takes at most {longest:,}.",
            advice="Shorten it.",
        )
    if not text.strip() or len(tokens) < 2:
        raise SpecError(
            f"The text {text!r} has no tokens that could look at each other.",
            advice="Give a sentence.",
        )
    after = attention_maps(model, inputs)
    enable(model, None)
    try:
        before = attention_maps(model, inputs)
    finally:
        enable(model, on)
    choice = ((before > 0) | (after > 0)).sum(-1).amax((0, 1)) > 1
    return AttentionComparison(
        tokens, before, after, divergence(before, after)[..., choice].mean(-1)
    )


def attention_maps(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the attention maps of one text, as the model stands.

    Args:
        model: of transformers, an encoder or a decoder.
        inputs: what its tokenizer gives for one text.

    Returns:
        (layers, heads, tokens, tokens) float64 on the CPU: row by row what a token looks at. Layers
        without maps (of another kind than attention) are left out.

    Raises:
        ModelError: it gives none, or layers whose maps differ in shape.
    """
    with exact_attention(model), torch.no_grad():
        found = getattr(model(**inputs, output_attentions=True), "attentions", None)
    layers = [layer[0] for layer in found or () if layer is not None and layer.ndim == 4]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} gives no attention maps.",
            advice="Encoders and decoders of transformers do; models of both halves, and those without attention, "
            "do not.",
        )
    if len(shapes := {tuple(layer.shape) for layer in layers}) > 1:
        raise ModelError(
            f"{type(model).__name__} gives maps of different shapes, which fit no one table: {sorted(shapes)}."
        )
    return torch.stack(layers).double().cpu()


def divergence(P: Tensor, Q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of distributions in bits: 0 where they are alike, 1
    where they share nothing.

    It is the mean of the two divergences from the distributions' middle: symmetric, and finite
    where one is zero.

    Args:
        P: (..., n), each last row at least 0 with sum 1.
        Q: likewise.

    Returns:
        (...) float64.

    Source: Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on Information
        Theory 37 (1), 1991.

    >>> P = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    >>> Q = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> [round(x, 3) for x in divergence(P, Q).tolist()]
    [0.0, 1.0, 0.311]
    """
    P, Q = P.double(), Q.double()
    middle = (P + Q) / 2
    bits = [torch.special.xlogy(X, X / middle.clamp_min(1e-300)).sum(-1) for X in (P, Q)]
    return (sum(bits) / (2 * torch.log(torch.tensor(2.0, dtype=torch.float64)))).clamp(0, 1)


@contextmanager
def exact_attention(model: Any) -> Iterator[None]:
    """Keep a model in eval mode, and its attention as the plain one that keeps its maps, while the
    block lasts.
    """
    config = getattr(model, "config", None)
    if config is None or not callable(getattr(model, "set_attn_implementation", None)):
        raise ModelError(
            f"{type(model).__name__} is no model of transformers: where its attention maps are is not known."
        )
    before, was_training = config._attn_implementation, model.training
    model.eval()
    try:
        model.set_attn_implementation(EXACT)
        yield
    finally:
        model.set_attn_implementation(before)
        model.train(was_training)


def readable_tokens(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return tokens as a person would read them: without the marks of a tokenizer for spaces.

    Args:
        tokenizer: of transformers.
        ids: of tokens.
    """
    raw = tokenizer.convert_ids_to_tokens(ids)
    return [token.replace("▁", " ").replace("Ġ", " ").strip() or "␣" for token in raw]
