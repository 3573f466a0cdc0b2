"""Text from a language model: greedy, sampling or beam search, in batches."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lorakit.data.batches import pad_rows, sort_into_batches
from lorakit.data.encode import check_text, encode_prompt, without_added
from lorakit.data.prompts import Chat, Prompt, show_prompt
from lorakit.data.templates import TemplateLimitError, encode_turns
from lorakit.errors import DataError, ModelError
from lorakit.evaluate.decoding import Decoding
from lorakit.models.load import Loaded, pad_id
from lorakit.models.open import check_ids
from lorakit.models.padding import leaks_padding
from lorakit.models.read import advise
from lorakit.text import first_line, plural

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TextStreamer


def generate(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    *,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    listen: Callable[[str], None] | None = None,
) -> list[str]:
    """Return the continuation of each prompt, without the prompt and without special tokens.

    Args:
        loaded: a language model or an encoder-decoder, with adapters on.
        prompts: texts, or chat turns (to which the chat template is applied).
        decoding: greedy, sampling or beam search.
        batch_size: prompts at once; they are ordered by length, so that padding is small.
        seed: seed of sampling.
        progress: called with the number of prompts done since the last call.
        listen: called with each piece of the text of a single prompt as it is generated; a beam
            search knows its text at the end alone.

    Raises:
        DataError: prompts that the chat template refuses, or that leave no room for a token.
        ModelError: transformers refuses what the model's generation_config.json asks for.
    """
    where = [f"prompt {number}" for number in range(1, len(prompts) + 1)]
    check_text(where, [{"prompt": show_prompt(prompt)} for prompt in prompts])
    ids = _encode_all(loaded, prompts)
    check_ids(loaded, where, ids)
    _check_lengths(ids, loaded.max_length, reserved=0 if is_seq2seq(loaded) else 1)
    settings = _generation_settings(decoding, loaded)
    if listen and decoding.beams == 1:
        settings["streamer"] = _make_streamer(loaded.tokenizer, listen)
    texts = [""] * len(ids)
    device = next(loaded.model.parameters()).device
    random_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=random_devices), torch.inference_mode():
        torch.manual_seed(seed)
        for positions in _make_batches(loaded, [len(row) for row in ids], batch_size):
            chosen = [ids[i] for i in positions]
            settings["max_new_tokens"] = min(decoding.max_new_tokens, _find_room(loaded, chosen))
            continued = _generate_batch(loaded, chosen, device, settings)
            for i, text in zip(positions, continued, strict=True):
                texts[i] = text.strip()
            if progress:
                progress(len(positions))
    if listen and decoding.beams > 1:
        listen(texts[0])
    return texts


def _make_streamer(
    tokenizer: "PreTrainedTokenizerBase", listen: Callable[[str], None]
) -> "TextStreamer":
    """Return a streamer of transformers that passes on the text of one prompt in pieces."""
    from transformers import TextStreamer

    class Listener(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                listen(text)

    return Listener(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _make_batches(loaded: Loaded, lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return the batches; those of a model whose outputs padding changes have no padding."""
    is_mixed = size > 1 and len(set(lengths)) > 1
    pad = pad_id(loaded.tokenizer, loaded.model)
    on_the_left = not is_seq2seq(loaded)
    unpadded = is_mixed and leaks_padding(loaded.model, pad, on_the_left=on_the_left)
    return sort_into_batches(lengths, size, unpadded=unpadded)


def is_seq2seq(loaded: Loaded) -> bool:
    """Return True for an encoder-decoder, which writes its answer apart from the prompt."""
    return loaded.task == "seq2seq"


def _find_room(loaded: Loaded, prompts: Sequence[list[int]]) -> int:
    """Return the number of tokens that a model can write after these prompts."""
    if is_seq2seq(loaded):
        return loaded.max_length - 1  # Its answer begins with a token that is not counted.
    return loaded.max_length - max(len(row) for row in prompts)


def _check_lengths(ids: Sequence[list[int]], max_length: int, reserved: int) -> None:
    """Refuse prompts that are empty or leave no room for the reserved tokens."""
    faults = [
        f"prompt {number} has {plural(len(row), 'token')}"
        for number, row in enumerate(ids, 1)
        if not 0 < len(row) <= max_length - reserved
    ]
    if faults:
        counted = plural(len(faults), "prompt")
        raise DataError(
            f"{counted} empty, or too long to leave room for an answer ({max_length} tokens).",
            faults,
        )


def _generation_settings(decoding: Decoding, loaded: Loaded) -> dict[str, Any]:
    """Return the arguments of transformers' `generate`."""
    settings: dict[str, Any] = {
        "do_sample": decoding.temperature > 0,
        "num_beams": decoding.beams,
        "no_repeat_ngram_size": decoding.no_repeat_ngram,
        "pad_token_id": pad_id(loaded.tokenizer, loaded.model),
        "eos_token_id": loaded.stops,
        "use_cache": True,
    }
    if decoding.temperature > 0:
        settings["temperature"] = decoding.temperature
        settings["top_p"] = decoding.top_p
        settings["top_k"] = 0  # not limited
    if decoding.beams > 1:
        settings["length_penalty"] = decoding.length_penalty
    return settings


def _generate_batch(
    loaded: Loaded, rows: Sequence[list[int]], device: torch.device, settings: dict[str, Any]
) -> list[str]:
    """Return the continuations of prompts, decoded."""
    tokenizer = loaded.tokenizer
    width = max(len(row) for row in rows)
    # A decoder-only model goes on after the prompt, whose end has to be that of the row.
    on_the_left = not is_seq2seq(loaded)
    ids = pad_rows(rows, width, settings["pad_token_id"], device, on_the_left=on_the_left)
    masks = [[1] * len(row) for row in rows]
    model: Any = loaded.model
    try:
        generated = model.generate(
            input_ids=ids,
            attention_mask=pad_rows(masks, width, 0, device, on_the_left=on_the_left),
            **settings,
        )
    except ValueError as error:  # of its generation_config.json
        raise ModelError(
            f"{loaded.name} cannot generate with its own settings: {first_line(error)}",
            advice=advise(error, "They are in its generation_config.json."),
        ) from error
    answers = generated[:, width:] if on_the_left else generated
    return tokenizer.batch_decode(answers, skip_special_tokens=True)


def _encode_all(loaded: Loaded, prompts: Sequence[Prompt]) -> list[list[int]]:
    ids: list[list[int]] = []
    faults: list[str] = []
    for number, prompt in enumerate(prompts, 1):
        try:
            ids.append(_encode(loaded, prompt))
        except TemplateLimitError:
            raise
        except DataError as error:
            faults.append(f"prompt {number}   {error.message}")
    if faults:
        raise DataError(
            f"{len(faults)} of {plural(len(prompts), 'prompt')} cannot be encoded.", faults
        )
    return ids


def _encode(loaded: Loaded, prompt: Prompt) -> list[int]:
    tokenizer = loaded.tokenizer
    if is_seq2seq(loaded):
        return _encode_read(tokenizer, prompt)
    if isinstance(prompt, str):
        return encode_prompt(tokenizer, prompt)
    if isinstance(prompt, Chat):
        return encode_turns(tokenizer, prompt.turns, prompt.tools)
    return encode_turns(tokenizer, prompt)


def _encode_read(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """Return the ids of a prompt that an encoder reads, with all its special tokens."""
    if not isinstance(prompt, str):
        raise DataError("an encoder-decoder reads a text, and no conversation")
    return tokenizer(without_added(tokenizer, prompt), verbose=False).input_ids
