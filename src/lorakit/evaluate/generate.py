"""Text from a causal language model: greedy, sampling or beam search, in batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lorakit.data.encode import encode_prompt
from lorakit.errors import DataError
from lorakit.evaluate.decoding import Decoding
from lorakit.models.load import Loaded, pad_id
from lorakit.text import plural


def generate(
    loaded: Loaded,
    prompts: Sequence[str | list[dict[str, str]]],
    how: Decoding,
    *,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Return what the model writes after each prompt, without the prompt and without special
    tokens.

    Args:
        loaded: a causal language model, with the adapters that are to be on.
        prompts: texts, or lists of chat turns (which go through the chat template).
        how: greedy, sampling or beam.
        batch_size: prompts at once; they are ordered by length, so that padding is small.
        seed: of sampling.
        progress: called with the number of prompts done since the last call.

    Raises:
        DataError: a prompt that leaves no room for a token.
    """
    tokenizer, model = loaded.tokenizer, loaded.model
    ids = [_ids(tokenizer, prompt) for prompt in prompts]
    room = loaded.max_length - 1
    if faults := [
        f"prompt {i + 1} has {plural(len(x), 'token')}"
        for i, x in enumerate(ids)
        if not 0 < len(x) <= room
    ]:
        what = f"{plural(len(faults), 'prompt')} empty, or too long to leave room to answer ({loaded.max_length} tokens)."
        raise DataError(what, faults)
    settings: dict[str, Any] = {
        "max_new_tokens": how.max_new_tokens,
        "do_sample": how.temperature > 0,
        "num_beams": how.beams,
        "no_repeat_ngram_size": how.no_repeat_ngram,
        "pad_token_id": pad_id(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "use_cache": True,
    }
    if how.temperature > 0:
        settings |= {"temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
    if how.beams > 1:
        settings["length_penalty"] = how.length_penalty
    out = [""] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            at = order[start : start + batch_size]
            width = max(len(ids[i]) for i in at)
            settings["max_new_tokens"] = min(how.max_new_tokens, loaded.max_length - width)
            # On the left, so that every prompt ends where generation begins.
            rows = torch.tensor(
                [[pad_id(tokenizer)] * (width - len(ids[i])) + ids[i] for i in at], device=device
            )
            mask = torch.tensor(
                [[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in at], device=device
            )
            made = model.generate(input_ids=rows, attention_mask=mask, **settings)
            for i, text in zip(
                at, tokenizer.batch_decode(made[:, width:], skip_special_tokens=True), strict=True
            ):
                out[i] = text.strip()
            if progress:
                progress(len(at))
    return out


def _ids(tokenizer: Any, prompt: str | list[dict[str, str]]) -> list[int]:
    if isinstance(prompt, str):
        return encode_prompt(tokenizer, prompt)
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids
