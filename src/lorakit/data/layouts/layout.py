"""Layouts: what the columns of a file are called, and what kind of rows they make."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, cast

Values = Mapping[Any, Any]  # of one record, by the name or number of a column
Row = dict[str, Any]  # with the keys of its kind

# The keys of each kind of rows.
KINDS = {
    "text": ("text",),
    "prompt": ("prompt",),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
    "instruction": ("prompt", "completion", "messages"),
    "labelled": ("text", "label"),
    "pair": ("text_a", "text_b", "label"),
    "unlabelled pair": ("text_a", "text_b"),
    "multi-label": ("text", "labels"),
    "tokens": ("tokens", "tags"),
    "untagged tokens": ("tokens",),
    "preference": ("prompt", "chosen", "rejected"),
    "rated": ("prompt", "completion", "label"),
}
# Columns that would change what is learned, where they hold something.
MEANINGFUL = {
    "audio",
    "choices",
    "chosen",
    "history",
    "image",
    "images",
    "kto_tag",
    "label",
    "labels",
    "loss_weight",
    "options",
    "rejected",
    "rejected_response",
    "reward",
    "sample_weight",
    "system",
    "system_prompt",
    "functions",
    "tools",
    "videos",
    "weight",
    "weights",
}
# Columns that say, beside a text, that it is not all that is to be learned.
BESIDE_TEXT = {
    "answer",
    "category",
    "class",
    "completion",
    "emotion",
    "entities",
    "gold_label",
    "intent",
    "output",
    "parent_id",
    "rating",
    "response",
    "role",
    "sentiment",
    "stars",
    "summary",
    "target",
}


class RowFault(Exception):
    """A record does not fit its layout; the message follows the record's place."""


def keep_names(layout: "Layout", values: Values) -> Iterator[Row]:
    """Yield the row whose keys are the columns themselves."""
    pairs = zip(KINDS[layout.kind], layout.columns, strict=True)
    yield {key: values.get(column) for key, column in pairs}


def _count_none(values: Values) -> Counter[str]:
    return Counter()


@dataclass(frozen=True)
class Layout:
    """Columns that a published or usual file has, and the rows that they make.

    Attributes:
        name: as it is told to the user.
        kind: of its rows, a key of KINDS.
        columns: names that every record has, in the order of the keys of the kind; numbers in a
            table without a header.
        optional: further names that are used where a record has them.
        matches: a test of the first record beyond its names.
        convert: gives the rows of a record: usually one, none where it holds no reference.
        regression: True if the labels are measured values.
        categories: name of the column that `--categories` chooses by.
        languages: counts the references of a record by their language, where they have one.
        language: the only one that is used.
    """

    name: str
    kind: str
    columns: Sequence[str | int]
    optional: Sequence[str] = ()
    matches: Callable[[Values], bool] = bool
    convert: Callable[["Layout", Values], Iterable[Row]] = field(default=keep_names)
    regression: bool = False
    categories: str = ""
    languages: Callable[[Values], Counter[str]] = field(default=_count_none)
    language: str = "en"

    def choose_language(self, values: Values) -> "Layout":
        """Return the layout of a file with this record: in English, unless the record has none."""
        found = self.languages(values)
        if not found or self.language in found:
            return self
        return replace(self, language=min(found))

    def fits(self, values: Values) -> bool:
        """Return True if a record is in this layout."""
        present = all(column in values for column in self.columns)
        return present and self.matches(values)

    def unused(self, values: Values) -> list[str | int]:
        """Return the columns of a record that are not used."""
        used = {*self.columns, *self.optional}
        return [name for name in values if name not in used]

    def would_change(self, column: str | int) -> bool:
        """Return True if an unused column of this name would change what is learned."""
        name = str(column).strip().lower()
        return name in MEANINGFUL or (self.kind == "text" and name in BESIDE_TEXT)


def as_list(value: object) -> list[Any] | None:
    """Return a sequence that is no text as a list; None for anything else."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(cast("Sequence[Any]", value))
    return None


def as_objects(value: object) -> list[Any] | None:
    """Return a list, of objects also where their values are listed by name; None for another value.

    The `datasets` library makes an object of lists of a list of objects.

    >>> as_objects({"from": ["human", "gpt"], "value": ["Hi", "Hello"]})
    [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Hello'}]
    """
    if not isinstance(value, Mapping):
        return as_list(value)
    lists = {name: as_list(values) for name, values in value.items()}
    if not lists or None in lists.values():
        return None
    rows = zip_longest(*(values or [] for values in lists.values()))
    return [dict(zip(lists, row, strict=True)) for row in rows]


def need_list(values: Values, column: str | int) -> list[Any]:
    """Return the list in a column.

    Raises:
        RowFault: it holds none.
    """
    found = as_objects(values.get(column))
    if found is None:
        raise RowFault(f"{column!r} is not a list")
    return found


def is_given(value: object) -> bool:
    """Return True if a column holds something: a text, a number, a list that is not empty."""
    return value is not None and value not in ("", [], {})


def first_given(values: Values, columns: Iterable[str]) -> str | None:
    """Return the first of these columns that holds something; None if none does."""
    return next((column for column in columns if is_given(values.get(column))), None)


def read_text(values: Values, column: str) -> str:
    """Return a column's text; an absent or empty one is an empty text.

    Raises:
        RowFault: it is no text.
    """
    value = values.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowFault(f"{column!r} is a {type(value).__name__}, text is needed")
    return value
