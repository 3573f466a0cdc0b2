"""Rows of a batch one after the other in one row, without padding, and attention that stays in each
of them.

Attention is computed row by row, so it costs what it costs without packing and no mask is made.
This works where a model calls PyTorch's attention through transformers' table of attention
functions, and hands on what it was called with. Whether it does is
seen on the model itself: what is packed beside a row must not change a bit of what comes out for
    it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.data.batches import concatenate_rows

NAME = "lorakit-packed"
WINDOWS = (
    "sliding_window",
    "attention_chunk_size",
    "attention_window",
    "window_size",
    "local_attention",
)
TOLERANCE = {
    2: 0.05,
    4: 1e-3,
    8: 1e-9,
}  # of the largest logit, by bytes of a value: products of other shapes round otherwise


def packing_obstacle(model: Any, longest: int) -> str | None:
    """Return why the shape of a model rules packing out, or None; its weights are not asked.

    Args:
        model: of transformers.
        longest: tokens of the longest row.
    """
    config = model.config.get_text_config()
    if getattr(config, "_attn_implementation", None) not in ("sdpa", NAME):
        return f"its attention is {getattr(config, '_attn_implementation', None)!r}, not sdpa"
    for key in WINDOWS:
        window = getattr(config, key, None)
        if isinstance(window, int) and not isinstance(window, bool) and 0 < window < longest:
            return f"rows of {longest:,} tokens are longer than its {key}, {window:,}"
    return None


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Let a model take packed rows while the block lasts; padded ones it takes as before."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: tuple[int, ...] | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Return attention as transformers' sdpa computes it, of each packed row by itself.

    Args:
        module: that attends.
        query: (batch, heads, tokens, size).
        key: (batch, heads of keys, tokens, size).
        value: as key.
        attention_mask: of rows that are not packed.
        packed: tokens of each row; None where rows are not packed.
        **more: what the function is given beside.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    parts = zip(*(t.split(packed, dim=2) for t in (query, key, value)), strict=True)
    return torch.cat(
        [sdpa_attention_forward(module, q, k, v, None, **more)[0] for q, k, v in parts], dim=1
    ), None


def find_leak(model: Any) -> str | None:
    """Return how the model's own computation shows that it cannot take packed rows, or None.

    Args:
        model: in a block of `packed_attention`; it runs on a few tokens from the middle of its vocabulary.
    """
    device, was_training = next(model.parameters()).device, model.training
    middle = model.config.get_text_config().vocab_size // 2
    one, other = list(range(middle - 7, middle)), list(range(middle, middle + 9))
    swapped = [other[i % len(other)] for i in range(len(one))]
    turned = [one[i % len(one)] for i in range(len(other))]

    def logits(rows: list[list[int]]) -> Tensor:
        return model(**concatenate_rows(rows, device), use_cache=False).logits[0]

    model.eval()
    try:
        with torch.no_grad():
            both = logits([one, other])
            before, after = logits([swapped, other]), logits([one, turned])
            alone = model(input_ids=torch.tensor([other], device=device), use_cache=False).logits[0]
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
        return f"packed rows make it fail: {next((x for x in str(error).splitlines() if x.strip()), type(error).__name__)}"
    finally:
        model.train(was_training)
    n = len(one)
    if not torch.equal(before[n:], both[n:]) or not torch.equal(after[:n], both[:n]):
        return "a packed row sees the others"
    off = float((both[n:].double() - alone.double()).abs().max()) / max(
        float(alone.double().abs().max()), 1e-30
    )
    if not off <= TOLERANCE[both.element_size()]:
        return f"a packed row comes out otherwise than alone, by {off:.2g} of its largest logit"
    return None
