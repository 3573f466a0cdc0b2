"""Instructions with answers: Alpaca and its like, and questions with answers.

Such a row is a conversation of two turns for a model that has a chat template, and a prompt with
a completion for a model that has none.
"""

from collections.abc import Iterator

from lorakit.data.layouts.chat import SYSTEM, Turn, with_system
from lorakit.data.layouts.layout import Layout, Row, RowFault, Values, as_list, is_given, read_text

# The prompt of Stanford Alpaca, which a base model without a chat template is trained on.
TASK = "Below is an instruction that describes a task"
ASKED = "Write a response that appropriately completes the request."
WITH_INPUT = (
    f"{TASK}, paired with an input that provides further context. {ASKED}\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT_INPUT = f"{TASK}. {ASKED}\n\n### Instruction:\n{{instruction}}\n\n### Response:"
QUESTION = "Question: {question}\nAnswer: "
WITH_CONTEXT = "Context: {context}\nQuestion: {question}\nAnswer: "


def convert_alpaca(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield the row of an instruction with its answer, and with its input or context or both.

    A system prompt and earlier exchanges become turns.

    Raises:
        RowFault: the instruction or the output is missing or no text.
    """
    instruction = _need_text(values, str(layout.columns[0]))
    inputs = [read_text(values, column) for column in INPUTS if column in layout.optional]
    more = "\n\n".join(text for text in inputs if text.strip())
    prompt = WITH_INPUT if more.strip() else WITHOUT_INPUT
    asked = f"{instruction}\n\n{more}" if more.strip() else instruction
    answer = _need_text(values, str(layout.columns[1]))
    turns = with_system(values, [*_history(values), *_exchange(asked, answer)])
    yield _make_row(prompt.format_map({"instruction": instruction, "input": more}), answer, turns)


def convert_question(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield the row of a question with its answer.

    Raises:
        RowFault: one of them is missing or no text.
    """
    question, answer = _need_text(values, "question"), _need_text(values, "answer")
    context = read_text(values, "context")
    prompt = WITH_CONTEXT if context.strip() else QUESTION
    asked = f"{context}\n\n{question}" if context.strip() else question
    turns = with_system(values, _exchange(asked, answer))
    yield _make_row(prompt.format_map({"context": context, "question": question}), answer, turns)


def _make_row(prompt: str, answer: str, turns: list[Turn]) -> Row:
    """Return a row; a prompt alone cannot hold a system prompt or earlier turns."""
    row: Row = {"prompt": prompt, "completion": answer, "messages": turns}
    return {**row, "needs_template": True} if len(turns) > 2 else row


def _need_text(values: Values, column: str) -> str:
    text = read_text(values, column)
    if not text.strip():
        raise RowFault(f"{column!r} is {'empty' if values.get(column) is not None else 'missing'}")
    return text


def _exchange(asked: str, answer: str) -> list[Turn]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _history(values: Values) -> list[Turn]:
    """Return the turns of earlier exchanges, each a pair of texts."""
    turns: list[Turn] = []
    for exchange in values.get("history") or []:
        pair = as_list(exchange) or []
        if [type(text) for text in pair] != [str, str]:
            raise RowFault("'history' is not a list of pairs of texts")
        turns += _exchange(*pair)
    return turns


def _is_answered(values: Values) -> bool:
    return isinstance(values.get("answer"), str) or not is_given(values.get("answer"))


INPUTS = ("context", "input")
# Names: of the layout, of the instruction, and of the answer.
ALPACAS = (
    ("Alpaca", "instruction", "output"),
    ("Dolly", "instruction", "response"),
    ("query and response", "query", "response"),
    ("question and response", "question", "response"),
    ("prompt and response", "prompt", "response"),
)
LAYOUTS = [
    *(
        Layout(
            name,
            "instruction",
            (instruction, answer),
            (*INPUTS, *SYSTEM, "history"),
            convert=convert_alpaca,
        )
        for name, instruction, answer in ALPACAS
    ),
    Layout(
        "question and answer",
        "instruction",
        ("question", "answer"),
        ("context", *SYSTEM),
        matches=_is_answered,
        convert=convert_question,
    ),
]
