"""Rows to token ids and labels. Every token that is cut or not trained is counted."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from lorakit.data.answers import encode_answers
from lorakit.data.rows import Rows
from lorakit.data.templates import (
    NEEDS_TEMPLATE,
    TemplateLimitError,
    encode_conversation,
    has_template,
)
from lorakit.errors import NOT_STARTED, DataError
from lorakit.text import plural

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that is read but not trained
SURROGATE = re.compile("[\ud800-\udfff]")
LONGEST_QUOTE = 40  # characters
BLOCK = 1000  # texts that are tokenised at once


@dataclass
class Example:
    """Token ids of one sequence, with its labels or its target.

    Attributes:
        ids: token ids.
        labels: one a token, IGNORED where it is not trained (language modelling); empty otherwise.
        target: class index or value (classification, regression).
        flags: 1 for each class that the row has, else 0 (several labels).
        tags: class of each token, IGNORED where it has none (tags of tokens).
        answer: token ids that a decoder is to write (encoder-decoders).
        types: token type ids of a pair, where the model has them.
        rejected: the sequence with the answer that is not preferred (preferences).
        rating: True if the answer is good, False if it is bad (rated answers).
        row: position of the row that the sequence comes from.
        cut: number of tokens of that row that do not fit and are not read.
    """

    ids: list[int]
    labels: list[int] = field(default_factory=list)
    target: float | int = 0
    flags: list[float] = field(default_factory=list)
    tags: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    types: list[int] | None = None
    rejected: "Example | None" = None
    rating: bool | None = None
    row: int = 0
    cut: int = 0

    @property
    def trained(self) -> int:
        """Number of values in the loss; the first token of a sequence is never predicted."""
        if self.rejected is not None or self.rating is not None:
            return 1
        if self.answer:
            return len(self.answer)
        if not self.labels and not self.tags:
            return 1
        return sum(label != IGNORED for label in self.tags or self.labels[1:])

    @property
    def size(self) -> int:
        """Number of tokens that the model reads and writes."""
        rejected = len(self.rejected.ids) if self.rejected else 0
        return len(self.ids) + len(self.answer) + rejected


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Settings by which rows are tokenised.

    Attributes:
        tokenizer: of transformers.
        max_length: tokens of a sequence at most.
        labels: names of the classes, where there are any.
        loss_on: completion or all, for language modelling.
        to_predict: True to take rows whose labels are to be predicted.
    """

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int
    labels: Sequence[str] = ()
    loss_on: str = "completion"
    to_predict: bool = False


def encode_causal(
    rows: Rows, tokenizer: "PreTrainedTokenizerBase", max_length: int, loss_on: str = "completion"
) -> list[Example]:
    """Tokenise rows for language modelling; every sequence ends in the EOS token, which is trained.

    Args:
        rows: of kind text, completion, messages or instruction.
        tokenizer: of transformers, with an EOS token.
        max_length: tokens. A longer `text` goes on in the next sequence; of a longer prompt the
            start is cut (after its first token), of a longer completion or conversation the end;
            also the start of a conversation of which no answer would be left.
        loss_on: "completion" trains completions and assistant turns alone, "all" trains every
            token.

    Raises:
        DataError: the rows are of another kind; the tokenizer has no EOS token or no chat template;
            or rows that the template refuses or in which no token would be trained, each named.
    """
    check_causal(rows, tokenizer)
    check_text(rows.where, rows.rows)
    examples: list[Example] = []
    errors: dict[int, DataError] = {}  # by position of the row
    encoded = encode_many(rows.kind, rows.rows, tokenizer, max_length, loss_on)
    for number, found in enumerate(encoded):
        if isinstance(found, DataError):
            errors[number] = found
            continue
        for example in found:
            example.row = number
            examples.append(example)
    untrained = [example.row for example in examples if not example.trained]
    refuse_rows(rows, errors, untrained, max_length)
    trained = [example for example in examples if example.trained]
    if not trained:
        raise DataError(
            f"No row of {rows.source} has two tokens or more, so nothing would be trained.",
            advice="A tokenizer that knows none of their characters gives no tokens: "
            "`lorakit preview` shows the tokens of a row.",
        )
    return trained


def encode_many(
    kind: str,
    rows: Iterable[dict[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    loss_on: str,
) -> Iterator[list[Example] | DataError]:
    """Yield the examples of each row, or why it has none; texts are tokenised many at once."""
    remaining = iter(rows)
    while kind == "text" and (block := list(islice(remaining, BLOCK))):
        yield from encode_texts([row["text"] for row in block], tokenizer, max_length)
    for row in remaining:
        try:
            yield encode_row(kind, row, tokenizer, max_length, loss_on)
        except TemplateLimitError:
            raise
        except DataError as error:
            yield error


def encode_row(
    kind: str,
    row: dict[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    loss_on: str,
) -> list[Example]:
    """Return the examples of a row, as `encode_causal` does for all rows."""
    return ENCODERS[kind](row, tokenizer, max_length, loss_on)


def refuse_rows(
    rows: Rows, errors: Mapping[int, DataError], untrained: Sequence[int], max_length: int
) -> None:
    """Refuse rows that cannot be encoded, or in which nothing would be trained.

    The end of a text may be an example in which nothing is trained; it is left out.

    Args:
        rows: all rows.
        errors: by position of the row.
        untrained: positions of the rows of examples without a trained token.
        max_length: tokens of a sequence at most.

    Raises:
        DataError: each row is named.
    """
    if errors:
        raise _row_error(rows, errors)
    if rows.kind != "text" and untrained:
        raise _untrained_error(rows, untrained, max_length)


def check_text(where: Sequence[str], rows: Sequence[object]) -> None:
    """Refuse rows with characters that no tokenizer can read: halves of a surrogate pair.

    Args:
        where: name of each row.
        rows: texts, alone or in lists and dictionaries.

    Raises:
        DataError: each row is named.
    """
    faults = []
    for name, row in zip(where, rows, strict=True):
        broken = next((text for text in _texts(row) if SURROGATE.search(text)), None)
        if broken is not None:
            faults.append(f"{name}   {broken[:LONGEST_QUOTE]!a}")
    if faults:
        raise DataError(
            f"{plural(len(faults), 'row')} with half a surrogate pair, which is no character.",
            faults,
            "Write such characters whole, or remove them.",
        )


def _texts(value: object) -> Iterator[str]:
    """Yield the texts in a value, and in the lists and dictionaries in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def check_causal(rows: Rows, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse rows or a tokenizer that cannot be used for language modelling."""
    if rows.kind not in ENCODERS:
        has_labels = "label" in rows.rows[0]
        found = "have labels" if has_labels else f"are in the layout {rows.layout}"
        raise DataError(
            f"Rows of {rows.source} {found}; causal-lm needs text, prompt and completion, or "
            "messages.",
            advice="Use --task classify, or name other columns." if has_labels else NOT_STARTED,
        )
    if tokenizer.eos_token_id is None:
        raise DataError("The tokenizer has no EOS token, so no sequence could learn to end.")
    if rows.kind == "messages" and not has_template(tokenizer):
        raise DataError(
            f"{rows.source} holds messages, but the model's tokenizer has no chat template.",
            advice=f"{NEEDS_TEMPLATE} {NOT_STARTED}",
        )


def _row_error(rows: Rows, errors: Mapping[int, DataError]) -> DataError:
    faults = [f"{rows.where[number]}   {error.message}" for number, error in errors.items()]
    advice = dict.fromkeys(error.advice for error in errors.values())
    return DataError(
        f"{len(errors)} of {plural(len(rows), 'row')} of {rows.source} cannot be encoded.",
        faults,
        " ".join([*filter(None, advice), NOT_STARTED]),
    )


def _untrained_error(rows: Rows, untrained: Sequence[int], max_length: int) -> DataError:
    faults = [
        f"{rows.where[number]}   none of its {max_length} tokens or fewer is trained"
        for number in untrained
    ]
    return DataError(
        f"{len(faults)} of {len(rows)} rows would train nothing.", faults, "Remove these rows."
    )


def _encode_text(
    row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", max_length: int, loss_on: str
) -> list[Example]:
    (examples,) = encode_texts([row["text"]], tokenizer, max_length)
    return examples


def encode_texts(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Iterator[list[Example]]:
    """Yield the examples of each text; it is faster to tokenise many at once."""
    added = find_added(tokenizer)
    own = [remove_added(text, added) for text in texts]
    # Not verbose: a text longer than the model's limit is split.
    encoded = tokenizer(own, verbose=False).input_ids
    for text, tokens in zip(texts, encoded, strict=True):
        ids = with_eos(tokenizer, tokens, text)
        starts = range(0, len(ids), max_length)
        parts = [ids[start : start + max_length] for start in starts]
        yield [Example(part, list(part)) for part in parts]


def _encode_completion(
    row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", max_length: int, loss_on: str
) -> list[Example]:
    prompt = encode_prompt(tokenizer, row["prompt"])
    answer = encode_answer(tokenizer, row["completion"])
    excess = max(0, len(prompt) + len(answer) - max_length)
    # The first token (BOS, if the model has one) is kept; then the oldest tokens of the prompt are
    # cut, then the end of the answer.
    cut_of_prompt = min(excess, max(len(prompt) - 1, 0))
    prompt = prompt[:1] + prompt[1 + cut_of_prompt :]
    prompt_labels = [IGNORED] * len(prompt) if loss_on == "completion" else prompt
    ids = (prompt + answer)[:max_length]
    labels = (prompt_labels + answer)[:max_length]
    return [Example(ids, labels, cut=excess)]


def _encode_messages(
    row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", max_length: int, loss_on: str
) -> list[Example]:
    turns, tools = row["messages"], row.get("tools")
    if loss_on == "completion":
        ids, is_answer = encode_answers(tokenizer, turns, tools, row.get("trained"))
        pairs = zip(ids, is_answer, strict=True)
        labels = [token if answered else IGNORED for token, answered in pairs]
    else:
        ids = encode_conversation(tokenizer, turns, tools)
        labels = list(ids)
    if not ids:
        raise DataError("the chat template makes an empty text of it")
    return [cut_conversation(ids, labels, max_length)]


def cut_conversation(ids: list[int], labels: list[int], max_length: int) -> Example:
    """Return a conversation cut to a number of tokens, so that some of an answer is left."""
    kept = _choose_window(labels, max_length)
    example = Example(ids[:1] + ids[kept], labels[:1] + labels[kept])
    example.cut = len(ids) - len(example.ids)
    return example


def _choose_window(labels: Sequence[int], max_length: int) -> slice:
    """Return the slice of the tokens of a conversation that are kept after its first.

    The end is cut. If no answer would be left, so much of the start is cut that the first answer
    fits, or the start of it.

    >>> _choose_window([IGNORED, IGNORED, IGNORED, 7, 8, IGNORED], 3)
    slice(3, 5, None)
    """
    room = max_length - 1
    trained = [i for i, label in enumerate(labels) if i and label != IGNORED]
    if not trained or trained[0] <= room:
        return slice(1, 1 + room)
    first = last = trained[0]
    while last < len(labels) and labels[last] != IGNORED:
        last += 1
    start = min(first, last - room)
    return slice(start, start + room)


def _encode_instruction(
    row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", max_length: int, loss_on: str
) -> list[Example]:
    """Tokenise an instruction as a conversation where the model has a chat template."""
    if has_template(tokenizer):
        return _encode_messages(row, tokenizer, max_length, loss_on)
    if row.get("needs_template"):
        raise DataError(
            "has a system prompt or earlier turns, and the tokenizer has no chat template",
            advice="Use a chat model, name a template (--template chatml, or a file), or remove "
            "these columns.",
        )
    return _encode_completion(row, tokenizer, max_length, loss_on)


# The encoder of each kind of rows for language modelling.
ENCODERS: dict[str, Callable[..., list[Example]]] = {
    "text": _encode_text,
    "completion": _encode_completion,
    "messages": _encode_messages,
    "instruction": _encode_instruction,
}


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Return the ids of a prompt, for training and for generation.

    They begin with BOS if the tokenizer adds one, and do not end in EOS.
    """
    ids = _tokenise(tokenizer, prompt)
    if ids and ids[-1] == tokenizer.eos_token_id:
        return ids[:-1]
    return ids


def encode_answer(tokenizer: "PreTrainedTokenizerBase", answer: str) -> list[int]:
    """Return the ids of an answer to a prompt, with EOS at their end."""
    ids = tokenizer(answer, add_special_tokens=False, verbose=False).input_ids
    return with_eos(tokenizer, ids, answer)


def _tokenise(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    # Not verbose: a text longer than the model's limit is cut later.
    return tokenizer(without_added(tokenizer, text), verbose=False).input_ids


def without_added(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """Return a text without the first and last token that the tokenizer adds again, such as BOS.

    A text that a chat template has made has them already.
    """
    return remove_added(text, find_added(tokenizer))


def find_added(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[str], list[str]]:
    """Return the special tokens that a tokenizer adds before a text, and those after it."""
    added: list[int] = tokenizer("").input_ids
    names: Any = tokenizer  # their special tokens are texts
    first = [
        token
        for token in (names.bos_token, names.cls_token)
        if token and added[:1] == [names.convert_tokens_to_ids(token)]
    ]
    last = [
        token
        for token in (names.eos_token, names.sep_token)
        if token and added[-1:] == [names.convert_tokens_to_ids(token)]
    ]
    return first, last


def remove_added(text: str, added: tuple[list[str], list[str]]) -> str:
    """Return a text without the special tokens at its ends, which `find_added` gives."""
    first, last = added
    for token in first:
        text = text.removeprefix(token)
    for token in last:
        text = text.removesuffix(token)
    return text


def with_eos(tokenizer: "PreTrainedTokenizerBase", ids: list[int], text: str) -> list[int]:
    """Return the ids of a text with EOS at their end, unless the text has it there.

    The templates of many models write a line break after the last EOS; it may stay.
    """
    eos: Any = tokenizer.eos_token_id
    ends_in_eos = eos in ids and text.rstrip().endswith(str(tokenizer.eos_token))
    return ids if ends_in_eos or ids[-1:] == [eos] else [*ids, eos]
