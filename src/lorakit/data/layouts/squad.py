"""SQuAD: questions on a text, answered by generation."""

from collections.abc import Iterator, Mapping
from typing import Any

from lorakit.data.layouts.layout import Layout, Row, RowFault, Values, as_list, is_given, read_text

TEMPLATE = "### CONTEXT\n{context}\n\n### QUESTION\n{question}\n\n### ANSWER\n"
NO_ANSWER = "Can not find answer"


def convert_squad(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield a row for each different answer of a question; an unanswerable one says so.

    Raises:
        RowFault: the question has answers that are no texts.
    """
    asked = {key: read_text(values, key) for key in ("context", "question")}
    for answer in dict.fromkeys(read_answers(values.get("answers"))) or [NO_ANSWER]:
        yield {"prompt": TEMPLATE.format_map(asked), "completion": answer}


def read_answers(answers: object) -> list[str]:
    """Return the texts of answers: `{text: [...]}` of data sets, `[{text}]` of the release.

    Raises:
        RowFault: it is neither.
    """
    if not is_given(answers):
        return []
    if isinstance(answers, Mapping):
        texts = as_list(answers.get("text"))
    else:
        texts = [_text_of(answer) for answer in as_list(answers) or [None]]
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise RowFault("'answers' holds no texts")
    return texts


def _text_of(answer: object) -> Any:  # noqa: ANN401  any JSON value
    return answer.get("text") if isinstance(answer, Mapping) else None


NAME = "SQuAD"
LAYOUTS = [
    Layout(NAME, "completion", ("context", "question", "answers"), convert=convert_squad),
]
