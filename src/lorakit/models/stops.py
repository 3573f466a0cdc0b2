"""Stops: the tokens after which a model has said what it says."""

from typing import TYPE_CHECKING, Any

from lorakit.data.answers import MARK, Conversation
from lorakit.data.templates import has_template, render
from lorakit.errors import DataError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


def find_stops(
    tokenizer: "PreTrainedTokenizerBase", generation: "GenerationConfig | None" = None
) -> list[int]:
    """Return the ids of the tokens at which a model stops, in rising order.

    They are those of the model's generation config, the EOS token of its tokenizer, and the token
    by which its chat template ends an answer.

    Args:
        tokenizer: of transformers.
        generation: settings of the model; None if it has none.
    """
    declared: Any = generation.eos_token_id if generation is not None else None
    listed: list[Any] = [*declared] if isinstance(declared, list | tuple) else [declared]
    listed += [tokenizer.eos_token_id, find_turn_end(tokenizer)]
    return sorted({token for token in listed if isinstance(token, int) and token >= 0})


def find_turn_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the id of the token by which the chat template ends an answer.

    Returns:
        None without a chat template, or if it ends an answer by ordinary text.
    """
    if not has_template(tokenizer):
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
    try:
        chat = Conversation(tokenizer, turns, None, render(tokenizer, turns))
    except DataError:
        return None
    end = (chat.text + chat.find_handover()).rpartition(MARK)[2]
    ids = tokenizer(end, add_special_tokens=False).input_ids
    added = tokenizer.added_tokens_decoder
    return next((token for token in ids if token in added), None)
