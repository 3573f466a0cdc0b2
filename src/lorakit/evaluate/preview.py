"""Preview of a data set as training would read it: tokens, labels, cuts and lengths."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, TypedDict

from lorakit.data.encode import IGNORED, Encoding, Example
from lorakit.data.labels import label_text
from lorakit.data.layouts.layout import Row
from lorakit.data.rows import Rows
from lorakit.data.template_files import check_use
from lorakit.models.load import find_max_length
from lorakit.models.open import choose_max_length
from lorakit.models.read import (
    build_without_weights,
    load_config,
    load_generation_config,
    load_tokenizer,
)
from lorakit.models.stops import find_stops
from lorakit.models.tasks import TASKS
from lorakit.tasks.find import find_task
from lorakit.tasks.rows import choose_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BINS = 10  # of the histogram of lengths
BROKEN = "\ufffd"  # stands for the first bytes of a character

Bin = TypedDict("Bin", {"from": int, "to": int, "count": int})


class Shown(TypedDict):
    """One sequence, token by token: the text of each token, and True if it is trained."""

    where: str
    pieces: list[tuple[str, bool]]
    target: str | float | None


class Preview(TypedDict):
    """Counts of a data set, its labels, the histogram of its lengths, and some sequences."""

    task: str
    kind: str
    rows: int
    sequences: int
    max_length: int
    tokens: int
    trained_tokens: int
    rows_cut: int
    tokens_cut: int
    rows_repeated: int
    eos: str | None
    eos_trained: int | None
    labels: dict[str, int]
    histogram: list[Bin]
    shown: list[Shown]


def preview(
    rows: Rows,
    model: str,
    task: str,
    loss_on: str,
    max_length: int | None,
    show: int,
    *,
    trust_remote_code: bool = False,
    template: str | None = None,
) -> Preview:
    """Tokenise rows as training does, and count; no weights are loaded.

    Args:
        rows: checked rows.
        model: the model whose tokenizer and longest sequence are used.
        task: causal-lm, classify, regress or auto.
        loss_on: completion or all.
        max_length: tokens of a sequence; None for training's own default.
        show: number of rows to return token by token.
        trust_remote_code: True to run Python code that the model's folder brings along.
        template: chat template: chatml, or a file; None for that of the model.

    Raises:
        DataError: what training would refuse.
        SpecError: the template cannot be read, or the rows are no conversations.
    """
    check_use(rows, template)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code, template=template)
    config = load_config(model, trust_remote_code=trust_remote_code)
    base = build_without_weights(config, trust_remote_code=trust_remote_code)
    longest = choose_max_length(max_length, find_max_length(config, tokenizer, base))
    task = choose_task(rows, task, model, trust_remote_code=trust_remote_code)
    names = find_task(task).list_classes(rows)
    how = Encoding(tokenizer=tokenizer, max_length=longest, labels=names, loss_on=loss_on)
    examples = find_task(task).encode(rows, how)
    answers = [*chain.from_iterable(map(_list_answers, examples))]
    writes = not TASKS[task].has_head
    generation = load_generation_config(model, config, trust_remote_code=trust_remote_code)
    ends = _count_ends(answers, find_stops(tokenizer, generation)) if writes else Counter()
    names_of_ends = [str(tokenizer.convert_ids_to_tokens(token)) for token in ends]
    lengths = [example.size for example in answers]
    return {
        "task": task,
        "kind": rows.kind,
        "rows": len(rows),
        "sequences": len(answers),
        "max_length": longest,
        "tokens": sum(lengths),
        "trained_tokens": sum(example.trained for example in answers),
        "rows_cut": sum(example.cut > 0 for example in examples),
        "tokens_cut": sum(example.cut for example in examples),
        "rows_repeated": rows.repeated,
        "eos": " ".join(names_of_ends) or str(tokenizer.eos_token) if writes else None,
        "eos_trained": ends.total() if writes else None,
        "labels": _count_labels(rows) if names else {},
        "histogram": _histogram(lengths),
        "shown": _show_rows(examples[:show], rows, tokenizer, task, names),
    }


def _list_answers(example: Example) -> list[Example]:
    """Return the answers of a preference or a rated answer each by itself; else the example."""
    answers = [example] if example.rejected is None else [example, example.rejected]
    return [replace(answer, rejected=None, rating=None) for answer in answers]


def _count_ends(examples: Sequence[Example], stops: Collection[int]) -> Counter[int]:
    """Return the number of sequences whose last trained token is this one, for each stop."""
    last: Counter[int] = Counter()
    for example in examples:
        trained = example.answer or [label for label in example.labels if label != IGNORED]
        last[trained[-1]] += 1
    return Counter({token: count for token, count in last.most_common() if token in stops})


def _count_labels(rows: Rows) -> dict[str, int]:
    """Return the number of times that each label occurs, the most frequent first."""
    found = chain.from_iterable(map(_labels_of, rows.rows))
    counts = Counter(map(label_text, found))
    return dict(counts.most_common())


def _labels_of(row: Row) -> Sequence[str | int | float]:
    """Return the label of a row, its labels, or its tags."""
    return [row["label"]] if "label" in row else row.get("labels") or row.get("tags") or []


def _show_rows(
    examples: Sequence[Example],
    rows: Rows,
    tokenizer: "PreTrainedTokenizerBase",
    task: str,
    names: Sequence[str],
) -> list[Shown]:
    """Return sequences token by token; of a preference both, as chosen and rejected."""
    shown: list[Shown] = []
    for example in examples:
        ratings = ["chosen", "rejected"]
        if example.rating is not None:
            ratings = ["good" if example.rating else "bad"]
        for answer, rating in zip(_list_answers(example), ratings, strict=False):
            one = _show(answer, rows, tokenizer, task, names)
            shown.append({**one, "target": rating} if task == "preference" else one)
    return shown


def _show(
    example: Example,
    rows: Rows,
    tokenizer: "PreTrainedTokenizerBase",
    task: str,
    names: Sequence[str],
) -> Shown:
    """Return a sequence token by token, and its target unless the task is language modelling."""
    pieces = _decode_pieces(tokenizer, example.ids)
    shown = list(zip(pieces, _mark_trained(example), strict=True))
    shown += [(piece, True) for piece in _decode_pieces(tokenizer, example.answer)]
    target = _describe_target(example, names) if TASKS[task].has_head else None
    return {"where": rows.where[example.row], "pieces": shown, "target": target}


def _mark_trained(example: Example) -> list[bool]:
    """Return True for each token that is read if something is learned at it."""
    if example.tags:
        return [tag != IGNORED for tag in example.tags]
    if not example.labels:
        return [False] * len(example.ids)
    # The first token of a sequence is never predicted.
    return [i > 0 and label != IGNORED for i, label in enumerate(example.labels)]


def _describe_target(example: Example, names: Sequence[str]) -> str | float:
    """Return the class, the classes, the tags or the value of a sequence."""
    if example.tags:
        return " ".join(names[tag] for tag in example.tags if tag != IGNORED)
    if example.flags:
        chosen = [name for name, flag in zip(names, example.flags, strict=True) if flag]
        return ", ".join(chosen) or "none"
    return names[int(example.target)] if names else example.target


def _decode_pieces(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[str]:
    """Return the text that each token adds; joined they are the text of the sequence.

    The last of several tokens that make one character adds all of it.
    """
    pieces: list[str] = []
    before = ""
    for number, token in enumerate(ids, 1):
        text = str(tokenizer.decode(ids[:number], clean_up_tokenization_spaces=False))
        is_begun = text.endswith(BROKEN) and number < len(ids)
        if is_begun and before.startswith(text.rstrip(BROKEN)):
            pieces.append("")
            continue
        if text.startswith(before):
            pieces.append(text[len(before) :])
        else:
            pieces.append(str(tokenizer.convert_ids_to_tokens(token)))
        before = text
    return pieces


def _histogram(lengths: list[int]) -> list[Bin]:
    """Return the number of sequences by length, in bins of equal width."""
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // BINS))  # rounded up
    counts = Counter((length - low) // width for length in lengths)
    bins: list[Bin] = []
    for number in range(max(counts) + 1):
        start = low + number * width
        bins.append({"from": start, "to": start + width - 1, "count": counts[number]})
    return bins
