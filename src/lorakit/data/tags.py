"""Tokens with tags: the words of a row as the model's tokens, with the class of each word."""

from collections.abc import Sequence
from itertools import chain

from lorakit.data.encode import IGNORED, Encoding, Example, check_text
from lorakit.data.labels import class_position, label_error, label_text, order_classes
from lorakit.data.rows import Rows
from lorakit.errors import NOT_STARTED, DataError

TAGGED = "tokens"  # kind of rows with a tag for each token
UNTAGGED = "untagged tokens"  # those for which tags can be predicted


def require_tags(rows: Rows, *, to_predict: bool = False) -> None:
    """Refuse rows that are no tokens with tags, unless the tags are to be predicted."""
    allowed = (TAGGED, UNTAGGED) if to_predict else (TAGGED,)
    if rows.kind not in allowed:
        raise DataError(
            f"Rows of {rows.source} are in the layout {rows.layout or rows.kind}; the task tokens "
            "needs lists of tokens and of tags.",
            advice=f"Name their columns: --columns tokens=… tags=…. {NOT_STARTED}",
        )


def list_tags(rows: Rows) -> list[str]:
    """Return the tags: in the order that the file gives them names, else those that occur.

    Of the latter O is first, and the tags of one entity are beside each other.

    >>> rows = [{"tokens": ["a", "b", "c"], "tags": ["I-PER", "O", "B-PER"]}]
    >>> list_tags(Rows("tokens", rows, [""], ""))
    ['O', 'B-PER', 'I-PER']
    """
    require_tags(rows)
    found = chain.from_iterable(row["tags"] for row in rows.rows)
    return order_classes(rows, {label_text(tag) for tag in found}, _tag_order)


def _tag_order(tag: str) -> tuple[bool, float, str, str]:
    prefix, _, entity = tag.partition("-")
    number = float(tag) if tag.isdigit() else -1.0
    return tag != "O", number, entity, prefix


def encode_tagged(rows: Rows, how: Encoding) -> list[Example]:
    """Tokenise the tokens of rows; the first of the model's tokens of each has its tag.

    Args:
        rows: of the kind TAGGED; to predict tags, also UNTAGGED, and then no row may be cut.
        how: tokenizer, which has to say where in a text its tokens are, length and classes; a
            longer sequence is cut at its end.

    Raises:
        DataError: rows of another kind, unknown tags, a tokenizer that gives no offsets, or a row
            of which nothing is left; each is named.
    """
    require_tags(rows, to_predict=how.to_predict)
    tokenizer = how.tokenizer
    check_text(rows.where, rows.rows)
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not say where in a text its tokens are, so they "
            "cannot have tags.",
            advice=f"Use a model with a tokenizer of the `tokenizers` library. {NOT_STARTED}",
        )
    targets = _find_targets(rows, how.labels)
    words = [[str(token) for token in row["tokens"]] for row in rows.rows]
    texts = [" ".join(some) for some in words]
    uncut = tokenizer(texts, verbose=False).input_ids
    encoded = tokenizer(
        texts, truncation=True, max_length=how.max_length, return_offsets_mapping=True
    )
    types = encoded.get("token_type_ids") or [None] * len(rows)
    examples: list[Example] = []
    missing: list[str] = []
    for number, ids in enumerate(encoded.input_ids):
        own = [IGNORED] * len(ids)
        first = find_first_tokens(words[number], encoded.offset_mapping[number])
        for word, position in first.items():
            own[position] = targets[number][word]
        if len(first) < len(words[number]):
            missing.append(f"{rows.where[number]}   {_describe_missing(words[number], first)}")
        cut = len(uncut[number]) - len(ids)
        examples.append(Example(ids, tags=own, types=types[number], row=number, cut=cut))
    if how.to_predict and missing:
        raise DataError(
            f"{len(missing)} of {len(rows)} rows would have tokens without a predicted tag.",
            missing,
            "Raise --max-length, or cut these rows yourself.",
        )
    _refuse_untrained(rows, examples)
    return examples


def find_first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Return the position of the first of the model's tokens in each word.

    Args:
        words: of a text, in which one space is between them.
        offsets: first character of each token, and the first after it; equal for special tokens.

    >>> find_first_tokens(["ab", "c"], [(0, 0), (0, 1), (1, 2), (2, 4), (0, 0)])
    {0: 1, 1: 3}
    """
    word_of: list[int] = []
    for number, word in enumerate(words):
        word_of += [number] * (len(word) + 1)
    first: dict[int, int] = {}
    for position, (start, end) in enumerate(offsets):
        # A token may begin with the space before its word.
        if end > start:
            first.setdefault(word_of[end - 1], position)
    return first


def _describe_missing(words: Sequence[str], first: dict[int, int]) -> str:
    lost = [word for number, word in enumerate(words) if number not in first]
    return f"{len(lost)} of {len(words)} tokens, from {lost[0]!r} on, are cut or unknown"


def _refuse_untrained(rows: Rows, examples: Sequence[Example]) -> None:
    """Refuse rows of which no token with a tag is left.

    Raises:
        DataError: each is named.
    """
    faults = [
        f"{rows.where[example.row]}   the model's tokenizer knows none of its tokens"
        for example in examples
        if not example.trained
    ]
    if faults:
        raise DataError(
            f"{len(faults)} of {len(rows)} rows would train nothing.", faults, NOT_STARTED
        )


def _find_targets(rows: Rows, tags: Sequence[str]) -> list[list[int]]:
    """Return the class of each token of each row; 0 where it has no tag."""
    if rows.kind == UNTAGGED:
        return [[0] * len(row["tokens"]) for row in rows.rows]
    targets: list[list[int]] = []
    faults: list[str] = []
    for where, row in zip(rows.where, rows.rows, strict=True):
        own: list[int] = []
        for tag in row["tags"]:
            position = class_position(label_text(tag), tags)
            if position is None:
                faults.append(f"{where}   tag {label_text(tag)!r} is none of the classes")
            else:
                own.append(position)
        targets.append(own)
    if faults:
        raise label_error(rows, faults, f"Classes: {', '.join(tags[:20])}.")
    return targets
