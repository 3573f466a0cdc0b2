"""Preferences and rated answers to token ids: each answer after its prompt, as training has it."""

from collections.abc import Sequence
from typing import Any

from lorakit.data.answers import encode_answers
from lorakit.data.encode import (
    IGNORED,
    Encoding,
    Example,
    check_text,
    cut_conversation,
    encode_answer,
    encode_prompt,
    refuse_rows,
)
from lorakit.data.layouts.chat import Turn
from lorakit.data.rows import Rows
from lorakit.data.templates import NEEDS_TEMPLATE, TemplateLimitError, has_template
from lorakit.errors import NOT_STARTED, DataError

# The keys of the answers in rows of each kind.
ANSWERS = {"preference": ("chosen", "rejected"), "rated": ("completion",)}


def encode_preferences(rows: Rows, how: Encoding) -> list[Example]:
    """Tokenise rows with two answers to a prompt, or with one that is rated.

    The tokens are those of a prompt with a completion, or of a conversation, for language
    modelling; only those of the answers have labels. Of a prompt that is too long the start is cut
    (after its first token), of a text for both answers alike; of an answer the end.

    Raises:
        DataError: rows of another kind, that the chat template refuses, or of which no token of an
            answer fits; each is named.
    """
    if rows.kind not in ANSWERS:
        raise DataError(
            f"Rows of {rows.source} are in the layout {rows.layout or rows.kind}; preference needs "
            "a prompt with a chosen and a rejected answer, or an answer that is rated.",
            advice=f"Name their columns: --columns prompt=… chosen=… rejected=…. {NOT_STARTED}",
        )
    if how.tokenizer.eos_token_id is None:
        raise DataError("The tokenizer has no EOS token, so no answer could learn to end.")
    check_text(rows.where, rows.rows)
    examples: list[Example] = []
    errors: dict[int, DataError] = {}
    for number, row in enumerate(rows.rows):
        try:
            examples.append(_encode_row(row, ANSWERS[rows.kind], how, number))
        except TemplateLimitError:
            raise
        except DataError as error:
            errors[number] = error
    untrained = [example.row for example in examples if not _has_answers(example)]
    refuse_rows(rows, errors, untrained, how.max_length)
    return examples


def _has_answers(example: Example) -> bool:
    """Return True if a token of each answer is read after another token."""
    answers = [example, example.rejected] if example.rejected else [example]
    return all(any(label != IGNORED for label in answer.labels[1:]) for answer in answers)


def _encode_row(row: dict[str, Any], keys: Sequence[str], how: Encoding, number: int) -> Example:
    answers = [row[key] for key in keys]
    is_text = all(isinstance(part, str) for part in (row["prompt"], *answers))
    encode = _encode_texts if is_text else _encode_turns
    encoded = encode(row, answers, how)
    example = encoded[0]
    example.row = number
    if len(encoded) == 1:
        example.rating = row["label"]
    else:
        example.rejected = encoded[1]
        example.cut += encoded[1].cut
        example.rejected.row, example.rejected.cut = number, 0
    return example


def _encode_texts(row: dict[str, Any], answers: Sequence[str], how: Encoding) -> list[Example]:
    prompt = encode_prompt(how.tokenizer, row["prompt"])
    encoded = [encode_answer(how.tokenizer, answer) for answer in answers]
    excess = max(0, len(prompt) + max(map(len, encoded)) - how.max_length)
    cut_of_prompt = min(excess, max(len(prompt) - 1, 0))
    start = prompt[:1] + prompt[1 + cut_of_prompt :]
    examples: list[Example] = []
    for answer in encoded:
        ids = (start + answer)[: how.max_length]
        labels = ([IGNORED] * len(start) + answer)[: how.max_length]
        examples.append(Example(ids, labels, cut=len(prompt) + len(answer) - len(ids)))
    return examples


def _encode_turns(
    row: dict[str, Any], answers: Sequence[str | list[Turn]], how: Encoding
) -> list[Example]:
    if not has_template(how.tokenizer):
        raise DataError(
            "is a conversation, and the tokenizer has no chat template", [], NEEDS_TEMPLATE
        )
    before = _as_turns(row["prompt"], "user")
    examples: list[Example] = []
    for answer in answers:
        after = _as_turns(answer, "assistant")
        learned = [turn["role"] == "assistant" for turn in after]
        trained = [False] * len(before) + learned
        ids, is_answer = encode_answers(how.tokenizer, [*before, *after], row.get("tools"), trained)
        pairs = zip(ids, is_answer, strict=True)
        labels = [token if answered else IGNORED for token, answered in pairs]
        examples.append(cut_conversation(ids, labels, how.max_length))
    return examples


def _as_turns(part: str | list[Turn], role: str) -> list[Turn]:
    """Return turns as they are, and a text as one turn of this role."""
    return [{"role": role, "content": part}] if isinstance(part, str) else part
