"""Labels of texts, of pairs of texts and of tokens, and the tasks of GLUE as they are published."""

import math
from collections.abc import Callable, Iterator

from lorakit.data.layouts.layout import (
    Layout,
    Row,
    RowFault,
    Values,
    as_list,
    keep_names,
    need_list,
)

# Names of the two texts of a pair, as published: by GLUE's tasks, SNLI, PAWS and the like.
PAIRS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("#1 String", "#2 String"),
)
# Names of the label, the published ones of the pairs among them.
LABELS = ("label", "gold_label", "is_duplicate", "Quality", "score")
TEXTS = ("text", "sentence")
TAGS = ("tags", "ner_tags", "pos_tags", "labels")
MEASURED = ("score",)  # labels that are a measured similarity


def pair_layouts() -> Iterator[Layout]:
    """Yield a layout for each two names of texts and each name of a label."""
    for pair in PAIRS:
        for label in LABELS:
            convert = convert_judged if label == "gold_label" else keep_names
            yield Layout(
                "pairs of texts and label",
                "pair",
                (*pair, label),
                convert=convert,
                regression=label in MEASURED,
            )


def convert_judged(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield a pair, unless its annotators did not agree on a label: SNLI writes `-` then."""
    if values.get("gold_label") != "-":
        yield from keep_names(layout, values)


def convert_labels(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield a text with several labels.

    Raises:
        RowFault: they are no list of words or numbers.
    """
    labels = as_list(values.get(layout.columns[1]))
    if labels is None or not all(isinstance(label, str | int) for label in labels):
        raise RowFault(f"{layout.columns[1]!r} is not a list of labels")
    yield {"text": values.get(layout.columns[0]), "labels": labels}


def convert_tokens(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield tokens with a tag each.

    Raises:
        RowFault: they are no lists of equal length.
    """
    tokens, tags = (need_list(values, column) for column in layout.columns)
    if not tokens:
        raise RowFault("has no tokens")
    if len(tokens) != len(tags):
        raise RowFault(f"has {len(tokens)} tokens and {len(tags)} tags")
    yield {"tokens": tokens, "tags": tags}


def convert_untagged(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield tokens whose tags are to be predicted.

    Raises:
        RowFault: they are no list, or an empty one.
    """
    tokens = need_list(values, layout.columns[0])
    if not tokens:
        raise RowFault("has no tokens")
    yield {"tokens": tokens}


def _holds_list(column: str) -> Callable[[Values], bool]:
    def test(values: Values) -> bool:
        return as_list(values.get(column)) is not None

    return test


def _is_cola(values: Values) -> bool:
    """Return True for a line of CoLA: source, 0 or 1, the author's mark, sentence."""
    return len(values) == 4 and values[1] in ("0", "1") and set(values[2]) <= set("*?")


def _is_sts(values: Values) -> bool:
    """Return True for a line of the STS benchmark: its fifth field is a score from 0 to 5."""
    try:
        score = float(values[4])
    except (TypeError, ValueError):
        return False
    return len(values) >= 7 and math.isfinite(score) and 0 <= score <= 5 and "." in values[4]


HEADERLESS = [
    Layout("CoLA of GLUE", "labelled", (3, 1), matches=_is_cola),
    Layout("STS benchmark", "pair", (5, 6, 4), matches=_is_sts, regression=True),
]
LAYOUTS = [
    *(
        Layout("tokens and tags", "tokens", ("tokens", tags), convert=convert_tokens)
        for tags in TAGS
    ),
    *(
        Layout(
            "text and labels",
            "multi-label",
            ("text", labels),
            matches=_holds_list(labels),
            convert=convert_labels,
        )
        for labels in ("labels", "label")
    ),
    *pair_layouts(),
    *(Layout("text and label", "labelled", (text, "label")) for text in TEXTS),
]
UNLABELLED = [
    Layout("tokens", "untagged tokens", ("tokens",), convert=convert_untagged),
    *(Layout("pairs of texts", "unlabelled pair", pair) for pair in PAIRS),
    Layout("text", "text", ("sentence",)),
]
