"""Preferences between two answers, and answers that were rated good or bad."""

from collections.abc import Iterator, Mapping

from lorakit.data.layouts.chat import (
    COLUMNS,
    EXTRAS,
    Turn,
    has_turns,
    read_tools,
    read_turns,
    with_system,
)
from lorakit.data.layouts.layout import Layout, Row, RowFault, Values, read_text

ASSISTANT = "\n\nAssistant:"  # before an answer in Anthropic's transcripts


def convert_preference(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield a prompt with the answer that is preferred and the one that is not.

    Raises:
        RowFault: one of them is missing, or neither text nor turns.
    """
    column = str(layout.columns[0])
    chosen, rejected = (_read_answer(values, key) for key in ("chosen", "rejected"))
    if column == "chosen" or (_is_whole(chosen) and _is_whole(rejected)):
        yield _split_common_start(chosen, rejected)
        return
    prompt = values.get(column)
    more = read_text(values, "input") if column == "instruction" else ""
    if more.strip():
        prompt = f"{prompt}\n\n{more}"
    if not isinstance(prompt, str):
        prompt = with_system(values, read_turns(prompt, column))
    row: Row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    tools = read_tools(values)
    yield {**row, "tools": tools} if tools else row


def _read_answer(values: Values, column: str) -> str | list[Turn]:
    answer = values.get(column)
    if isinstance(answer, Mapping):
        answer = [answer]
    if isinstance(answer, str):
        if not answer.strip():
            raise RowFault(f"{column!r} is empty")
        return answer
    return read_turns(answer, column)


def _is_whole(answer: str | list[Turn]) -> bool:
    """Return True for a whole conversation, which repeats the prompt before the answer."""
    return not isinstance(answer, str) and answer[0]["role"] in ("system", "user")


def _split_common_start(chosen: str | list[Turn], rejected: str | list[Turn]) -> Row:
    """Return the row of two whole conversations, whose common start is the prompt."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowFault("'chosen' and 'rejected' need a 'prompt', since they are no conversations")
    common = 0
    for left, right in zip(chosen, rejected, strict=False):
        if left != right:
            break
        common += 1
    if common in (0, len(chosen), len(rejected)):
        raise RowFault("'chosen' and 'rejected' do not begin alike and end differently")
    return {
        "prompt": chosen[:common],
        "chosen": chosen[common:],
        "rejected": rejected[common:],
    }


def convert_preferred_output(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield the row of a preference as OpenAI writes it, with its prompt in an object.

    Raises:
        RowFault: the prompt or one of the answers is missing.
    """
    given = values.get("input")
    asked = dict(given) if isinstance(given, Mapping) else {}
    answers = zip(("chosen", "rejected"), layout.columns[1:], strict=True)
    row: Row = {"prompt": read_turns(asked.get("messages"), "messages")}
    row |= {key: read_turns(values.get(column), str(column)) for key, column in answers}
    tools = read_tools(asked)
    yield {**row, "tools": tools} if tools else row


def convert_transcripts(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield the row of two transcripts in Anthropic's form, which differ in the last answer.

    Raises:
        RowFault: they do not begin alike, or are no such transcripts.
    """
    texts = [read_text(values, column) for column in ("chosen", "rejected")]
    (prompt, chosen), (other, rejected) = (_split_transcript(text) for text in texts)
    if not prompt or prompt != other:
        raise RowFault("'chosen' and 'rejected' do not begin alike and end differently")
    yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _split_transcript(text: str) -> tuple[str, str]:
    """Return a transcript up to the last answer, and that answer."""
    before, speaker, answer = text.rpartition(ASSISTANT)
    return before + speaker, answer


def convert_rated(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield a prompt and a completion with the rating of the completion.

    Raises:
        RowFault: the rating is neither true nor false, or the answer is missing.
    """
    label = values.get(str(layout.columns[-1]))
    if not isinstance(label, bool):
        raise RowFault(f"{layout.columns[-1]!r} is {label!r}, true or false is needed")
    if "prompt" in layout.columns:
        prompt: object = values.get("prompt")
        answer: object = values.get("completion")
        if not isinstance(prompt, str):
            prompt = with_system(values, read_turns(prompt, "prompt"))
        if not isinstance(answer, str):
            answer = read_turns(answer, "completion")
    else:
        column = str(layout.columns[0])
        turns = with_system(values, read_turns(values.get(column), column))
        prompt, answer = turns[:-1], turns[-1:]
    yield {"prompt": prompt, "completion": answer, "label": label}


def _is_rated(values: Values) -> bool:
    return isinstance(values.get("label"), bool)


def _are_transcripts(values: Values) -> bool:
    texts = [values.get(column) for column in ("chosen", "rejected")]
    return all(isinstance(text, str) and ASSISTANT in text for text in texts)


# How data sets call the prompt of a preference; ShareGPT's conversations among them.
PROMPTS = ("prompt", "conversations", "instruction", "question")
RATED = "rated conversations (KTO)"
LAYOUTS = [
    *(
        Layout(
            f"preferences ({prompt}, chosen, rejected)",
            "preference",
            (prompt, "chosen", "rejected"),
            (*EXTRAS, "input") if prompt == "instruction" else EXTRAS,
            convert=convert_preference,
        )
        for prompt in PROMPTS
    ),
    Layout(
        "preferences (chosen, rejected)",
        "preference",
        ("chosen", "rejected"),
        matches=has_turns("chosen", "rejected"),
        convert=convert_preference,
    ),
    Layout(
        "preferences (OpenAI)",
        "preference",
        ("input", "preferred_output", "non_preferred_output"),
        convert=convert_preferred_output,
    ),
    Layout(
        "preferences (chosen, rejected)",
        "preference",
        ("chosen", "rejected"),
        matches=_are_transcripts,
        convert=convert_transcripts,
    ),
    Layout(
        "rated completions (KTO)",
        "rated",
        ("prompt", "completion", "label"),
        EXTRAS,
        _is_rated,
        convert_rated,
    ),
    *(
        Layout(RATED, "rated", (column, "label"), EXTRAS, _is_rated, convert_rated)
        for column in COLUMNS
    ),
    *(
        Layout(RATED, "rated", (column, "kto_tag"), EXTRAS, convert=convert_rated)
        for column in COLUMNS
    ),
]
