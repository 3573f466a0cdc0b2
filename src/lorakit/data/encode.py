"""Rows to token ids and labels. Every token that is cut or not trained is counted."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorakit.data.rows import Rows
from lorakit.data.templates import TemplateLimitError, encode_answers, encode_conversation
from lorakit.errors import NOT_STARTED, DataError
from lorakit.text import add_hint, near_misses, plural

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that is read but not trained
SURROGATE = re.compile("[\ud800-\udfff]")
LONGEST_QUOTE = 40  # characters
LABELLED = ("labelled", "pair")  # kinds of rows with labels


@dataclass
class Example:
    """Token ids of one sequence, with its labels or its target.

    Attributes:
        ids: token ids.
        labels: one a token, IGNORED where it is not trained (language modelling); empty otherwise.
        target: class index or value (classification, regression).
        types: token type ids of a pair, where the model has them.
        row: position of the row that the sequence comes from.
        cut: number of tokens of that row that do not fit and are not read.
    """

    ids: list[int]
    labels: list[int] = field(default_factory=list)
    target: float | int = 0
    types: list[int] | None = None
    row: int = 0
    cut: int = 0

    @property
    def trained(self) -> int:
        """Number of values in the loss; the first token of a sequence is never predicted."""
        if not self.labels:
            return 1
        return sum(label != IGNORED for label in self.labels[1:])


def encode_causal(
    rows: Rows, tokenizer: "PreTrainedTokenizerBase", max_length: int, loss_on: str = "completion"
) -> list[Example]:
    """Tokenise rows for language modelling; every sequence ends in the EOS token, which is trained.

    Args:
        rows: of kind text, completion or messages.
        tokenizer: of transformers, with an EOS token.
        max_length: tokens. A longer `text` goes on in the next sequence; of a longer prompt the
            start is cut (after its first token), of a longer completion or conversation the end.
        loss_on: "completion" trains completions and assistant turns alone, "all" trains every
            token.

    Raises:
        DataError: the rows are of another kind; the tokenizer has no EOS token or no chat template,
            or a template that rewrites earlier turns; or rows in which no token would be trained,
            each named.
    """
    _check_causal(rows, tokenizer)
    check_text(rows.where, rows.rows)
    encode = ENCODERS[rows.kind]
    examples: list[Example] = []
    errors: dict[int, DataError] = {}  # by position of the row
    for number, row in enumerate(rows.rows):
        try:
            encoded = encode(row, tokenizer, max_length, loss_on)
        except TemplateLimitError:
            raise
        except DataError as error:
            errors[number] = error
            continue
        for example in encoded:
            example.row = number
            examples.append(example)
    if errors:
        raise _row_error(rows, errors)
    trained = [example for example in examples if example.trained]
    if rows.kind != "text" and len(trained) < len(examples):
        raise _untrained_error(rows, examples, max_length)
    return trained


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


def _check_causal(rows: Rows, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse rows or a tokenizer that cannot be used for language modelling."""
    if rows.kind not in ENCODERS:
        raise DataError(
            f"Rows of {rows.source} have labels; causal-lm needs text, prompt and completion, or "
            "messages.",
            advice="Use --task classify, or name other columns.",
        )
    if tokenizer.eos_token_id is None:
        raise DataError("The tokenizer has no EOS token, so no sequence could learn to end.")
    if rows.kind == "messages" and not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{rows.source} holds messages, but the model's tokenizer has no chat template.",
            advice="Use a chat model, or rows with prompt and completion.",
        )


def _row_error(rows: Rows, errors: Mapping[int, DataError]) -> DataError:
    faults = [f"{rows.where[number]}   {error.message}" for number, error in errors.items()]
    advice = dict.fromkeys(error.advice for error in errors.values())
    return DataError(
        f"{len(errors)} of {plural(len(rows), 'row')} of {rows.source} cannot be encoded.",
        faults,
        " ".join([*filter(None, advice), NOT_STARTED]),
    )


def _untrained_error(rows: Rows, examples: Sequence[Example], max_length: int) -> DataError:
    faults = [
        f"{rows.where[example.row]}   no token of it is trained: only its prompt fits into "
        f"{max_length} tokens"
        for example in examples
        if not example.trained
    ]
    return DataError(
        f"{len(faults)} of {len(rows)} rows would train nothing.",
        faults,
        "Raise --max-length, or remove these rows.",
    )


def _encode_text(
    row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", max_length: int, loss_on: str
) -> list[Example]:
    ids = _with_eos(tokenizer, _tokenise(tokenizer, row["text"]), row["text"])
    starts = range(0, len(ids), max_length)
    parts = [ids[start : start + max_length] for start in starts]
    return [Example(part, list(part)) for part in parts]


def _encode_completion(
    row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", max_length: int, loss_on: str
) -> list[Example]:
    prompt = encode_prompt(tokenizer, row["prompt"])
    answer = tokenizer(row["completion"], add_special_tokens=False).input_ids
    answer = _with_eos(tokenizer, answer, row["completion"])
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
    turns = row["messages"]
    if loss_on == "completion":
        ids, is_answer = encode_answers(tokenizer, turns)
        pairs = zip(ids, is_answer, strict=True)
        labels = [token if answered else IGNORED for token, answered in pairs]
    else:
        ids = encode_conversation(tokenizer, turns)
        labels = list(ids)
    if not ids:
        raise DataError("the chat template makes an empty text of it")
    excess = max(0, len(ids) - max_length)
    return [Example(ids[:max_length], labels[:max_length], cut=excess)]


# The encoder of each kind of rows for language modelling.
ENCODERS: dict[str, Callable[..., list[Example]]] = {
    "text": _encode_text,
    "completion": _encode_completion,
    "messages": _encode_messages,
}


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Return the ids of a prompt, for training and for generation.

    They begin with BOS if the tokenizer adds one, and do not end in EOS.
    """
    ids = _tokenise(tokenizer, prompt)
    if ids and ids[-1] == tokenizer.eos_token_id:
        return ids[:-1]
    return ids


def _tokenise(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    # Not verbose: a text longer than the model's limit is cut later.
    return tokenizer(_without_added(tokenizer, text), verbose=False).input_ids


def _without_added(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """Return a text without the first and last token that the tokenizer adds again, such as BOS.

    A text that a chat template has made has them already.
    """
    added: list[int] = tokenizer("").input_ids
    names: Any = tokenizer  # their special tokens are texts
    for token in (names.bos_token, names.cls_token):
        if token and added[:1] == [names.convert_tokens_to_ids(token)]:
            text = text.removeprefix(token)
    for token in (names.eos_token, names.sep_token):
        if token and added[-1:] == [names.convert_tokens_to_ids(token)]:
            text = text.removesuffix(token)
    return text


def _with_eos(tokenizer: "PreTrainedTokenizerBase", ids: list[int], text: str) -> list[int]:
    """Return the ids of a text with EOS at their end, unless the text has it there.

    The templates of many models write a line break after the last EOS; it may stay.
    """
    eos: Any = tokenizer.eos_token_id
    ends_in_eos = eos in ids and text.rstrip().endswith(str(tokenizer.eos_token))
    return ids if ends_in_eos or ids[-1:] == [eos] else [*ids, eos]


def require_labels(rows: Rows) -> None:
    """Refuse rows that have no label."""
    if rows.kind not in LABELLED:
        raise DataError(
            f"Rows of {rows.source} have no label; classify needs text and label, or text_a, "
            "text_b and label.",
            advice="Use --task causal-lm, or name the label's column: --columns label=…",
        )


def list_labels(rows: Rows) -> list[str]:
    """Return the labels of a classification: numbers in their order, then words sorted.

    Raises:
        DataError: the rows have no label.

    >>> rows = [{"text": "a", "label": 10}, {"text": "b", "label": 9}]
    >>> list_labels(Rows("labelled", rows, ["", ""], ""))
    ['9', '10']
    """
    require_labels(rows)
    labels = {label_text(row["label"]) for row in rows.rows}
    return sorted(labels, key=_label_order)


def _label_order(label: str) -> tuple[int, float, str]:
    number = _parse_number(label)
    return (1, 0.0, label) if number is None else (0, number, label)


def label_text(label: object) -> str:
    """Return the name of a class as the file has it; equal numbers have one name.

    >>> label_text(1), label_text(1.0), label_text("1.10"), label_text(True), label_text(" yes ")
    ('1', '1', '1.10', 'true', 'yes')
    """
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label).strip()


def _parse_number(value: Any) -> float | None:  # noqa: ANN401  any JSON value
    """Return a value as a finite number, or None: true, false, "nan" and "inf" are words."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def is_regression(rows: Rows) -> bool:
    """Return True if all labels are numbers and at least one is not whole.

    In a file that tells texts from numbers, as JSON does, a text is the name of a class.
    """
    labels = [row["label"] for row in rows.rows]
    if rows.typed and any(isinstance(label, str) for label in labels):
        return False
    numbers = [_parse_number(label) for label in labels]
    present = [number for number in numbers if number is not None]
    if len(present) < len(numbers):
        return False
    return not all(number.is_integer() for number in present)


def _check_spellings(rows: Rows) -> None:
    """Refuse labels of which nothing tells whether they are names or numbers.

    Raises:
        DataError: in a file without types, two labels are different texts and the same number.
    """
    spellings: dict[float, set[str]] = {}
    for row in rows.rows:
        number = _parse_number(row["label"])
        if number is None:
            return
        spellings.setdefault(number, set()).add(label_text(row["label"]))
    repeated = [sorted(names) for names in spellings.values() if len(names) > 1]
    if repeated and not rows.typed:
        faults = [" and ".join(repr(name) for name in names) for names in repeated]
        raise DataError(
            f"Labels of {rows.source} may be names of classes, or numbers that are written in "
            "several ways.",
            faults,
            f"Give --task classify if they are names, --task regress if not. {NOT_STARTED}",
        )


def infer_task(rows: Rows, task: str = "auto") -> str:
    """Return the task that the rows are for, where the given task is "auto".

    >>> rows = [{"text": "a", "label": 0.5}, {"text": "b", "label": 2}]
    >>> infer_task(Rows("labelled", rows, ["", ""], ""))
    'regress'
    """
    if task != "auto":
        return task
    if rows.kind not in LABELLED:
        return "causal-lm"
    _check_spellings(rows)
    return "regress" if is_regression(rows) else "classify"


def encode_labelled(
    rows: Rows,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    labels: Sequence[str] | None,
) -> list[Example]:
    """Tokenise one or two texts a row, with a class index or a value as target.

    Args:
        rows: of kind labelled or pair.
        tokenizer: of transformers.
        max_length: tokens; the longer text of a row is cut at its end.
        labels: the class names in order; None for regression.

    Raises:
        DataError: rows of another kind, or labels that are not a class or a number; each is named.
    """
    require_labels(rows)
    check_text(rows.where, rows.rows)
    targets = _values(rows) if labels is None else _class_indices(rows, labels)
    is_pair = rows.kind == "pair"
    first = [row["text_a" if is_pair else "text"] for row in rows.rows]
    first = [_without_added(tokenizer, text) for text in first]
    second = [row["text_b"] for row in rows.rows] if is_pair else None
    uncut = tokenizer(first, second, verbose=False).input_ids
    encoded = tokenizer(first, second, truncation=True, max_length=max_length)
    types = encoded.get("token_type_ids") or [None] * len(uncut)
    examples: list[Example] = []
    for number, ids in enumerate(encoded.input_ids):
        cut = len(uncut[number]) - len(ids)
        target, own_types = targets[number], types[number]
        examples.append(Example(ids, target=target, types=own_types, row=number, cut=cut))
    return examples


def _values(rows: Rows) -> list[float]:
    """Return the labels of a regression."""
    values: list[float] = []
    faults: list[str] = []
    for where, row in zip(rows.where, rows.rows, strict=True):
        value = _parse_number(row["label"])
        if value is None:
            faults.append(f"{where}   label {row['label']!r} is not a number")
        else:
            values.append(value)
    if faults:
        raise _label_error(rows, faults)
    return values


def _class_indices(rows: Rows, labels: Sequence[str]) -> list[int]:
    """Return the position of each row's label among the classes."""
    indices: list[int] = []
    faults: list[str] = []
    for where, row in zip(rows.where, rows.rows, strict=True):
        label = label_text(row["label"])
        index = _class_index(label, labels)
        if index is not None:
            indices.append(index)
        else:
            hint = near_misses(label, labels)
            fault = f"{where}   label {label!r} is none of the classes"
            faults.append(add_hint(fault, hint))
    if faults:
        raise _label_error(rows, faults, f"Classes: {', '.join(labels[:20])}.")
    return indices


def _class_index(label: str, labels: Sequence[str]) -> int | None:
    """Return the position of a class: of its name, else of the only one that is the same number."""
    if label in labels:
        return labels.index(label)
    number = _parse_number(label)
    if number is None:
        return None
    equal = [i for i, name in enumerate(labels) if _parse_number(name) == number]
    return equal[0] if len(equal) == 1 else None


def _label_error(rows: Rows, faults: list[str], advice: str = "") -> DataError:
    counted = f"{len(faults)} of {len(rows)} labels"
    return DataError(f"{counted} of {rows.source} cannot be used.", faults, advice)
