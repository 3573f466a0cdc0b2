"""Rows with labels: their task, their classes, and their tokens."""

import math
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from lorakit.data.encode import Encoding, Example, check_text, find_added, remove_added
from lorakit.data.layouts import KINDS
from lorakit.data.layouts.layout import Row
from lorakit.data.rows import Rows
from lorakit.errors import NOT_STARTED, DataError
from lorakit.text import add_hint, near_misses, plural

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABELLED = ("labelled", "pair")  # kinds of rows with a label
WITH_TARGETS = (*LABELLED, "multi-label", "tokens")  # those from which labels are learned
UNLABELLED = ("text", "unlabelled pair")  # those for which one can be predicted
BLOCK = 1000  # rows that are tokenised at once
MOST_NUMBERS = 50  # different numbers that may be the names of classes
UNMARKED = {"-1", "0", "1", "2"}  # labels of which the first may be none
# The tasks of the kinds of rows with labels that are no single class or value.
TASK_OF_KIND = {
    "multi-label": "multi-label",
    "tokens": "tokens",
    "untagged tokens": "tokens",
    "preference": "preference",
    "rated": "preference",
}


def require_labels(rows: Rows, *, to_predict: bool = False) -> None:
    """Refuse rows that have no label, unless it is to be predicted."""
    allowed = (*LABELLED, *UNLABELLED) if to_predict else LABELLED
    if rows.kind not in allowed:
        raise DataError(
            f"Rows of {rows.source} have no label; classify needs text and label, or text_a, "
            "text_b and label.",
            advice="Name the label's column (--columns label=…), or use --task causal-lm. "
            "`lorakit eval --predictions FILE` needs no labels.",
        )


def list_labels(rows: Rows) -> list[str]:
    """Return the labels of a classification: as the source orders them, else numbers, then words.

    Numbers are in their order, words sorted. A source that has an order also names the classes of
    which it has no row.

    Raises:
        DataError: the rows have no label.

    >>> rows = [{"text": "a", "label": 10}, {"text": "b", "label": 9}]
    >>> list_labels(Rows("labelled", rows, ["", ""], ""))
    ['9', '10']
    """
    require_labels(rows)
    labels = {label_text(row["label"]) for row in rows.rows}
    return order_classes(rows, labels) if len(labels) > 1 else [*labels]


def order_classes(
    rows: Rows, found: Collection[str], order: Callable[[str], Any] | None = None
) -> list[str]:
    """Return the classes as the source orders them, else those that were found.

    Args:
        rows: a source that has an order also names classes of which it has no row.
        found: names that occur.
        order: of the latter; numbers in their order, then words sorted, by default.
    """
    if {*found} <= {*rows.classes}:
        return [*rows.classes]
    return sorted(found, key=order or _label_order)


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
    """Return True if the labels are measured values, and not the names of classes.

    They are if the layout says so, or if the file tells texts from numbers, as JSON does, and the
    labels are numbers of which at least one has a decimal point.
    """
    if rows.is_measured:
        return True
    labels = [row["label"] for row in rows.rows]
    if not rows.typed or not all(_is_number(label) for label in labels):
        return False
    return any(isinstance(label, float) for label in labels)


def _is_number(label: object) -> bool:
    return isinstance(label, int | float) and not isinstance(label, bool)


def _check_classes(rows: Rows) -> None:
    """Refuse labels that are numbers, and may not be the names of classes.

    Raises:
        DataError: there are more than fifty different numbers, or -1 beside the classes 0, 1 and
            2, by which data sets of the hub mark rows without a label.
    """
    names = {label_text(row["label"]) for row in rows.rows}
    if rows.classes:
        return
    if names >= UNMARKED and not any(_is_below(name, -1) for name in names):
        marked = sum(label_text(row["label"]) == "-1" for row in rows.rows)
        raise DataError(
            f"The label -1 of {plural(marked, 'row')} of {rows.source} stands beside 0, 1 and 2: "
            "data sets often mark rows without a label so.",
            advice=f"Remove such rows, or give --task classify if -1 is a class. {NOT_STARTED}",
        )
    if len(names) > MOST_NUMBERS and all(_parse_number(name) is not None for name in names):
        shown = ", ".join(sorted(names)[:5])
        raise DataError(
            f"The labels of {rows.source} are {len(names)} different numbers ({shown} and so on): "
            "measured values, or the names of as many classes.",
            advice=f"Give --task regress or --task classify. {NOT_STARTED}",
        )


def _is_below(name: str, limit: float) -> bool:
    number = _parse_number(name)
    return number is not None and number < limit


def infer_task(rows: Rows, task: str = "auto") -> str:
    """Return the task that the rows are for, where the given task is "auto".

    Raises:
        DataError: nothing tells whether numbers are classes.

    >>> rows = [{"text": "a", "label": 0.5}, {"text": "b", "label": 2}]
    >>> infer_task(Rows("labelled", rows, ["", ""], "", typed=True))
    'regress'
    """
    if task != "auto":
        return task
    if rows.kind not in LABELLED:
        return TASK_OF_KIND.get(rows.kind, "causal-lm")
    if is_regression(rows):
        return "regress"
    _check_classes(rows)
    return "classify"


def encode_labelled(
    rows: Rows,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    labels: Sequence[str] | None,
    *,
    to_predict: bool = False,
) -> list[Example]:
    """Tokenise one or two texts a row, with a class index or a value as target.

    Args:
        rows: of a kind in LABELLED; to predict labels, also in UNLABELLED.
        tokenizer: of transformers.
        max_length: tokens; the longer text of a row is cut at its end.
        labels: the class names in order; None for regression.
        to_predict: True to take rows without a label, whose target is 0 then.

    Raises:
        DataError: rows of another kind, or labels that are not a class or a number; each is named.
    """
    require_labels(rows, to_predict=to_predict)
    targets = list_targets(rows, labels)
    examples = _encode_all(rows, tokenizer, max_length)
    for example, target in zip(examples, targets, strict=True):
        example.target = target
    return examples


def _encode_all(rows: Rows, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[Example]:
    """Tokenise all rows, in blocks: what a tokenizer makes of a text takes much memory."""
    check_text(rows.where, rows.rows)
    examples: list[Example] = []
    for start in range(0, len(rows), BLOCK):
        block = rows.rows[start : start + BLOCK]
        examples += encode_block(rows.kind, block, tokenizer, max_length)
    for number, example in enumerate(examples):
        example.row = number
    return examples


def encode_block(
    kind: str, rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[Example]:
    """Tokenise rows of texts, or of pairs of texts, without their labels."""
    keys = ("text_a", "text_b") if "text_a" in KINDS[kind] else ("text",)
    added = find_added(tokenizer)
    texts = [[row[key] for row in rows] for key in keys]
    texts[0] = [remove_added(text, added) for text in texts[0]]
    second = texts[1] if len(keys) > 1 else None
    encoded = tokenizer(texts[0], second, verbose=False)
    types = encoded.get("token_type_ids") or [None] * len(rows)
    examples: list[Example] = []
    for number, ids in enumerate(encoded.input_ids):
        own_types = types[number]
        cut = max(0, len(ids) - max_length)
        if cut:
            own_second = second[number] if second else None
            shorter = tokenizer(
                texts[0][number], own_second, truncation=True, max_length=max_length
            )
            cut = len(ids) - len(shorter.input_ids)
            ids, own_types = shorter.input_ids, shorter.get("token_type_ids")
        examples.append(Example(ids, types=own_types, cut=cut))
    return examples


def list_targets(rows: Rows, labels: Sequence[str] | None) -> Sequence[float | int]:
    """Return the target of each row; 0 where it has no label."""
    if rows.kind in UNLABELLED:
        return [0] * len(rows)
    return _values(rows) if labels is None else _class_indices(rows, labels)


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
        raise label_error(rows, faults)
    return values


def _class_indices(rows: Rows, labels: Sequence[str]) -> list[int]:
    """Return the position of each row's label among the classes."""
    indices: list[int] = []
    faults: list[str] = []
    for where, row in zip(rows.where, rows.rows, strict=True):
        label = label_text(row["label"])
        index = class_position(label, labels)
        if index is not None:
            indices.append(index)
        else:
            hint = near_misses(label, labels)
            fault = f"{where}   label {label!r} is none of the classes"
            faults.append(add_hint(fault, hint))
    if faults:
        raise label_error(rows, faults, f"Classes: {', '.join(labels[:20])}.")
    return indices


def class_position(label: str, labels: Sequence[str]) -> int | None:
    """Return the position of a class: of its name, else of the only one that is the same number."""
    if label in labels:
        return labels.index(label)
    number = _parse_number(label)
    if number is None:
        return None
    equal = [i for i, name in enumerate(labels) if _parse_number(name) == number]
    return equal[0] if len(equal) == 1 else None


def label_error(rows: Rows, faults: list[str], advice: str = "") -> DataError:
    """Return the error of labels that cannot be used, each named."""
    counted = f"{len(faults)} of {len(rows)} labels"
    return DataError(f"{counted} of {rows.source} cannot be used.", faults, advice)


def list_several(rows: Rows) -> list[str]:
    """Return all labels of rows that have several each.

    Raises:
        DataError: the rows are of another kind.

    >>> rows = [{"text": "a", "labels": ["b", "a"]}, {"text": "c", "labels": []}]
    >>> list_several(Rows("multi-label", rows, ["", ""], ""))
    ['a', 'b']
    """
    _require_several(rows)
    found = chain.from_iterable(row["labels"] for row in rows.rows)
    return order_classes(rows, {label_text(label) for label in found})


def _require_several(rows: Rows, *, to_predict: bool = False) -> None:
    allowed = ("multi-label", "text") if to_predict else ("multi-label",)
    if rows.kind not in allowed:
        raise DataError(
            f"Rows of {rows.source} are in the layout {rows.layout or rows.kind}; multi-label "
            "needs a text and a list of labels.",
            advice=f"Name their columns: --columns text=… labels=…. {NOT_STARTED}",
        )


def encode_several(rows: Rows, how: Encoding) -> list[Example]:
    """Tokenise texts, with a flag for each class.

    Args:
        rows: of the kind multi-label; to predict labels, also texts, whose flags are 0.
        how: tokenizer, length and classes; a longer text is cut at its end.

    Raises:
        DataError: rows of another kind, or labels that are not a class; each is named.
    """
    _require_several(rows, to_predict=how.to_predict)
    labels = how.labels
    examples = _encode_all(rows, how.tokenizer, how.max_length)
    faults: list[str] = []
    for example in examples:
        example.flags = [0.0] * len(labels)
        for label in rows.rows[example.row].get("labels", ()):
            position = class_position(label_text(label), labels)
            if position is None:
                hint = near_misses(label_text(label), labels)
                fault = f"{rows.where[example.row]}   label {label_text(label)!r} is no class"
                faults.append(add_hint(fault, hint))
            else:
                example.flags[position] = 1.0
    if faults:
        raise label_error(rows, faults, f"Classes: {', '.join(labels[:20])}.")
    return examples
