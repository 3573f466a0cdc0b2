"""Padding: a check that a row of a padded batch gets what it gets alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rows = Sequence[list[int]]
LENGTHS = (7, 3)  # tokens of the two rows that are compared
# Largest difference relative to the largest logit, by the bytes of a value.
TOLERANCE = {8: 1e-6, 4: 1e-3, 2: 5e-2}
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError)


def leaks_padding(model: "PreTrainedModel", pad: int, *, on_the_left: bool = False) -> bool:
    """Return True if padding changes what a model computes for a row.

    Convolutions and pooling over a whole row, recurrent models, and models that count positions
    from the start of the batch may do so. It runs on two short rows.

    Args:
        model: a model of transformers, with logits or without a head; it runs in eval mode.
        pad: the id that fills batches.
        on_the_left: True for the padding of generation, False for that of training and scoring.
    """
    middle = model.config.get_text_config().vocab_size // 2
    long, short = (list(range(middle - length, middle)) for length in LENGTHS)
    fill = len(long) - len(short)
    ids, mask = ([pad] * fill, [0] * fill)
    row = ids + short if on_the_left else short + ids
    seen = mask + [1] * len(short) if on_the_left else [1] * len(short) + mask
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            compute = _next_logits if on_the_left else _all_outputs
            alone = compute(model, [short], [[1] * len(short)], pad)
            both = compute(model, [long, row], [[1] * len(long), seen], pad)
    except FAILURES:
        return True
    finally:
        model.train(was_training)
    if alone.ndim == 3:
        both = both[:, : len(short)]
    expected, found = alone[0], both[1]
    # -inf, for tokens that are never generated, equals itself.
    difference = torch.where(expected == found, 0.0, (found - expected).abs()).max()
    allowed = TOLERANCE[alone.element_size()] * expected[expected.isfinite()].abs().max()
    # Written so that NaN is a difference too.
    return not bool(difference <= allowed)


def _all_outputs(model: "PreTrainedModel", rows: Rows, masks: Rows, pad: int) -> Tensor:
    """Return the logits, or the last hidden state of a model without a head."""
    outputs = model(**_as_inputs(model, rows, masks), **_decoder_inputs(model, len(rows)))
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def _next_logits(model: "PreTrainedModel", rows: Rows, masks: Rows, pad: int) -> Tensor:
    """Return the logits of the first token that is generated."""
    generate: Any = model.generate
    generated = generate(
        **_as_inputs(model, rows, masks),
        max_new_tokens=1,
        do_sample=False,
        pad_token_id=pad,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return generated.logits[0]


def _decoder_inputs(model: "PreTrainedModel", rows: int) -> dict[str, Tensor]:
    """Return the first token of the answers of an encoder-decoder; nothing for other models."""
    if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return {}
    labels = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
    shift: Any = model.prepare_decoder_input_ids_from_labels
    return {"decoder_input_ids": shift(labels=labels)}


def _as_inputs(model: "PreTrainedModel", rows: Rows, masks: Rows) -> dict[str, Tensor]:
    return {
        "input_ids": torch.tensor(rows, device=model.device),
        "attention_mask": torch.tensor(masks, device=model.device),
    }
