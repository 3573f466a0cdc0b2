"""Rows to token ids, with the labels that are trained; what is cut or masked is counted, never
silent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorakit.data.rows import Rows
from lorakit.errors import DataError
from lorakit.text import near_misses

IGNORED = -100  # the label of a token that is read but not trained


@dataclass
class Example:
    """Token ids of one sequence, and what is to be learned of it.

    Attributes:
        ids: token ids.
        labels: one a token, IGNORED where it is not trained (language modelling); empty otherwise.
        target: class index or value (classification, regression).
        types: token type ids of a pair, where the model has them.
        row: position of the row it came from.
        cut: tokens of that row that did not fit and are not read.
    """

    ids: list[int]
    labels: list[int] = field(default_factory=list)
    target: float | int = 0
    types: list[int] | None = None
    row: int = 0
    cut: int = 0

    @property
    def trained(self) -> int:
        """Number of values that count in the loss: the first token of a sequence is never
        predicted.
        """
        return sum(label != IGNORED for label in self.labels[1:]) if self.labels else 1


def encode_causal(
    rows: Rows, tokenizer: Any, max_length: int, loss_on: str = "completion"
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
        DataError: rows of another kind, no EOS token, no chat template, or one that rewrites
            earlier turns; a row of which no token would be trained is named.
    """
    if rows.kind not in ("text", "completion", "messages"):
        raise DataError(
            f"Rows of {rows.source} have labels; causal-lm needs text, prompt and completion, or messages.",
            advice="Use --task classify, or name other columns.",
        )
    if tokenizer.eos_token_id is None:
        raise DataError("The tokenizer has no EOS token, so no sequence could learn to end.")
    if rows.kind == "messages" and not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{rows.source} holds messages, but the model's tokenizer has no chat template.",
            advice="Use a chat model, or rows with prompt and completion.",
        )
    encoder = {"text": _text, "completion": _completion, "messages": _messages}[rows.kind]
    examples = [
        e
        for i, row in enumerate(rows.rows)
        for e in encoder(row, i, tokenizer, max_length, loss_on)
    ]
    faults = [
        f"{rows.where[e.row]}   no token of it is trained: nothing but its prompt fits into {max_length} tokens"
        for e in examples
        if not e.trained and rows.kind != "text"
    ]
    if faults:
        raise DataError(
            f"{len(faults)} of {len(rows)} rows would train nothing.",
            faults,
            "Raise --max-length, or take them out.",
        )
    return [e for e in examples if e.trained]


def _text(
    row: dict[str, Any], at: int, tokenizer: Any, max_length: int, loss_on: str
) -> list[Example]:
    ids = _with_eos(_plain(tokenizer, row["text"]), tokenizer)
    parts = [ids[i : i + max_length] for i in range(0, len(ids), max_length)]
    return [Example(part, list(part), row=at) for part in parts]


def _completion(
    row: dict[str, Any], at: int, tokenizer: Any, max_length: int, loss_on: str
) -> list[Example]:
    prompt = prompt_ids(tokenizer, row["prompt"])
    answer = [
        *tokenizer(row["completion"], add_special_tokens=False).input_ids,
        tokenizer.eos_token_id,
    ]
    over = max(0, len(prompt) + len(answer) - max_length)
    # The first token (BOS, where there is one) stays; then the oldest of the prompt goes, then the
    # end of the answer.
    keep = prompt[:1] + prompt[1 + min(over, max(len(prompt) - 1, 0)) :]
    ids = (keep + answer)[:max_length]
    labels = [IGNORED if loss_on == "completion" else t for t in keep] + answer
    return [Example(ids, labels[:max_length], row=at, cut=over)]


def _messages(
    row: dict[str, Any], at: int, tokenizer: Any, max_length: int, loss_on: str
) -> list[Example]:
    turns = row["messages"]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded.input_ids
    if loss_on == "completion":
        spans = list(_assistant_spans(turns, text, tokenizer))
        labels = [
            t if any(a <= start and end <= b and end > start for a, b in spans) else IGNORED
            for t, (start, end) in zip(ids, encoded.offset_mapping, strict=True)
        ]
    else:
        labels = list(ids)
    return [
        Example(ids[:max_length], labels[:max_length], row=at, cut=max(0, len(ids) - max_length))
    ]


def _assistant_spans(turns: Sequence[dict[str, str]], text: str, tokenizer: Any):
    """Yield the (start, end) characters of each assistant turn: what the template adds after its
    prompt.
    """
    for i, turn in enumerate(turns):
        if turn["role"] == "assistant":
            before = (
                tokenizer.apply_chat_template(turns[:i], tokenize=False, add_generation_prompt=True)
                if i
                else ""
            )
            after = tokenizer.apply_chat_template(turns[: i + 1], tokenize=False)
            if not text.startswith(before) or not text.startswith(after):
                raise DataError(
                    "The chat template rewrites earlier turns, so it cannot be told which tokens are the "
                    "assistant's.",
                    advice="Use --loss-on all.",
                )
            yield len(before), len(after)


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return the ids of a prompt as training and generation both read it: with BOS where the model
    has one, no EOS.
    """
    ids = _plain(tokenizer, prompt)
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _plain(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, verbose=False).input_ids


def _with_eos(ids: list[int], tokenizer: Any) -> list[int]:
    return ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def need_labels(rows: Rows) -> None:
    """Refuse rows that have no label."""
    if rows.kind not in ("labelled", "pair"):
        raise DataError(
            f"Rows of {rows.source} have no label; classify needs text and label, or text_a, text_b and label.",
            advice="Use --task causal-lm, or name the label's column: --columns label=…",
        )


def label_names(rows: Rows) -> list[str]:
    """Return the labels of a classification, numbers in their order, words sorted.

    Raises:
        DataError: the rows have no label.

    >>> label_names(Rows("labelled", [{"text": "a", "label": 10}, {"text": "b", "label": 9}], ["", ""], ""))
    ['9', '10']
    """
    need_labels(rows)
    names = {label_name(row["label"]) for row in rows.rows}
    return sorted(names, key=lambda n: (0, float(n), n) if _number(n) is not None else (1, 0.0, n))


def label_name(label: Any) -> str:
    """Return one name for a label whichever way the file writes it: 1, 1.0 and "1" are "1"."""
    number = _number(label)
    return str(int(number)) if number is not None and number.is_integer() else str(label).strip()


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None  # "nan" and "inf" are words


def is_regression(rows: Rows) -> bool:
    """Tell whether the labels are numbers that are not all whole."""
    numbers = [_number(row["label"]) for row in rows.rows]
    return all(n is not None for n in numbers) and not all(
        n.is_integer() for n in numbers if n is not None
    )


def task_of(rows: Rows, asked: str = "auto") -> str:
    """Return the task that was asked for, or that the rows tell.

    >>> task_of(Rows("labelled", [{"text": "a", "label": 0.5}, {"text": "b", "label": 2}], ["", ""], ""))
    'regress'
    """
    if asked != "auto":
        return asked
    if rows.kind not in ("labelled", "pair"):
        return "causal-lm"
    return "regress" if is_regression(rows) else "classify"


def encode_labelled(
    rows: Rows, tokenizer: Any, max_length: int, labels: Sequence[str] | None
) -> list[Example]:
    """Tokenise one or two texts a row, with a class index or a value to learn.

    Args:
        rows: of kind labelled or pair.
        tokenizer: of transformers.
        max_length: tokens; the longer text of a row is cut at its end.
        labels: the class names in order; None for regression.

    Raises:
        DataError: rows of another kind, labels that are no class or no number; each is named.
    """
    need_labels(rows)
    faults, targets = [], []
    for where, row in zip(rows.where, rows.rows, strict=True):
        if labels is None:
            value = _number(row["label"])
            faults += [f"{where}   label {row['label']!r} is no number"] if value is None else []
            targets.append(value)
        else:
            name = label_name(row["label"])
            faults += (
                []
                if name in labels
                else [
                    f"{where}   label {name!r} is none of the classes {near_misses(name, labels)}".rstrip()
                ]
            )
            targets.append(labels.index(name) if name in labels else 0)
    if faults:
        known = "" if labels is None else f"Classes: {', '.join(labels[:20])}."
        raise DataError(
            f"{len(faults)} of {len(rows)} labels of {rows.source} cannot be used.", faults, known
        )
    first = [row["text_a" if rows.kind == "pair" else "text"] for row in rows.rows]
    second = [row["text_b"] for row in rows.rows] if rows.kind == "pair" else None
    full = tokenizer(first, second, verbose=False).input_ids
    encoded = tokenizer(first, second, truncation=True, max_length=max_length)
    kinds = encoded.get("token_type_ids") or [None] * len(full)
    parts = zip(encoded.input_ids, full, kinds, targets, strict=True)
    return [
        Example(ids, target=target, types=types, row=i, cut=len(whole) - len(ids))
        for i, (ids, whole, types, target) in enumerate(parts)
    ]
