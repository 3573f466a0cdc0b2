"""Packing: rows of a batch concatenated without padding, and attention that stays in each row.

Attention is computed row by row, so it costs as much as without packing, and no mask is made. This
works for a model that calls PyTorch's attention through transformers' table of attention functions
and passes on its own keyword arguments. `find_leak` checks that on the model itself: the other rows
of a pack must not change a bit of a row's output.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorakit.data.batches import concatenate_rows
from lorakit.spec import is_whole
from lorakit.text import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "lorakit-packed"  # in transformers' tables
# Keys of a config that limit attention to a window of tokens.
WINDOWS = (
    "sliding_window",
    "attention_chunk_size",
    "attention_window",
    "window_size",
    "local_attention",
)
# Of the largest logit, by bytes of a value: products of other shapes are rounded differently.
TOLERANCE = {2: 0.05, 4: 1e-3, 8: 1e-9}
# Errors of a model that cannot take packed rows.
FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError)


def packing_obstacle(model: "PreTrainedModel", longest: int) -> str | None:
    """Return the reason in its config why a model cannot take packed rows, or None.

    Args:
        model: of transformers; its weights are not read.
        longest: tokens of the longest row.
    """
    config = model.config.get_text_config()
    attention = getattr(config, "_attn_implementation", None)
    if attention not in ("sdpa", NAME):
        return f"its attention is {attention!r}, not sdpa"
    if model._is_stateful:
        return "it hands a state from token to token"
    for key in WINDOWS:
        window = getattr(config, key, None)
        if is_whole(window, least=1) and window < longest:
            return f"rows of {longest:,} tokens are longer than its {key}, {window:,}"
    return None


@contextmanager
def packed_attention(model: "PreTrainedModel") -> Iterator[None]:
    """Let a model take packed rows inside the block; padded rows are computed as before."""
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
    **more: Any,  # noqa: ANN401  arguments of transformers' attention, passed on
) -> tuple[Tensor, None]:
    """Return attention as transformers' sdpa computes it, for each packed row by itself.

    Args:
        module: the attention layer.
        query: (batch, heads, tokens, size).
        key: (batch, heads of keys, tokens, size).
        value: as key.
        attention_mask: of rows that are not packed.
        packed: tokens of each row; None where rows are not packed.
        **more: passed on to transformers' function.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    rows = zip(
        query.split(packed, dim=2),
        key.split(packed, dim=2),
        value.split(packed, dim=2),
        strict=True,
    )
    outputs = [sdpa_attention_forward(module, *row, None, **more)[0] for row in rows]
    return torch.cat(outputs, dim=1), None


def find_leak(model: "PreTrainedModel") -> str | None:
    """Return the way in which a model's output shows that it cannot take packed rows, or None.

    Args:
        model: in a block of `packed_attention`; it runs on a few tokens from the middle of its
            vocabulary.
    """
    middle = model.config.get_text_config().vocab_size // 2
    first = list(range(middle - 7, middle))
    second = list(range(middle, middle + 9))
    other_first = _repeat(second, len(first))
    other_second = _repeat(first, len(second))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            both = _packed_logits(model, [first, second])
            changed_first = _packed_logits(model, [other_first, second])
            changed_second = _packed_logits(model, [first, other_second])
            alone = _logits_alone(model, second)
    except FAILURES as error:
        return f"packed rows make it fail: {first_line(error)}"
    finally:
        model.train(was_training)
    border = len(first)
    first_is_kept = torch.equal(changed_second[:border], both[:border])
    second_is_kept = torch.equal(changed_first[border:], both[border:])
    if not first_is_kept or not second_is_kept:
        return "a packed row sees the others"
    difference = _relative_difference(both[border:], alone)
    # Written so that NaN is a difference too.
    if not difference <= TOLERANCE[both.element_size()]:
        return f"a packed row differs from the row alone by {difference:.2g} of its largest logit"
    return None


def _repeat(ids: list[int], length: int) -> list[int]:
    return [ids[i % len(ids)] for i in range(length)]


def _packed_logits(model: "PreTrainedModel", rows: Sequence[list[int]]) -> Tensor:
    device = next(model.parameters()).device
    return model(**concatenate_rows(rows, device), use_cache=False).logits[0]


def _logits_alone(model: "PreTrainedModel", row: list[int]) -> Tensor:
    device = next(model.parameters()).device
    ids = torch.tensor([row], device=device)
    return model(input_ids=ids, use_cache=False).logits[0]


def _relative_difference(x: Tensor, y: Tensor) -> float:
    """Return the largest difference of two tensors, relative to the largest value of `y`."""
    difference = (x.double() - y.double()).abs().max()
    largest = y.double().abs().max()
    return float(difference) / max(float(largest), 1e-30)
