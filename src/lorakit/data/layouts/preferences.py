"""Preferences between two answers, and answers that were rated good or bad."""

from collections.abc import Iterator, Mapping

from lorakit.data.layouts.chat import (
    EXTRAS,
    Turn,
    has_messages,
    is_sharegpt_turn,
    read_sharegpt,
    read_tools,
    read_turns,
    with_system,
)
from lorakit.data.layouts.layout import Layout, Row, RowFault, Values, as_list


def convert_preference(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield a prompt with the answer that is preferred and the one that is not.

    Raises:
        RowFault: one of them is missing, or neither text nor turns.
    """
    column = str(layout.columns[0])
    answers = {key: _read_answer(values, key) for key in ("chosen", "rejected")}
    if column == "chosen":
        yield _split_common_start(answers["chosen"], answers["rejected"])
        return
    prompt = values.get(column)
    if not isinstance(prompt, str):
        prompt = with_system(values, _read_either(prompt, column))
    row: Row = {"prompt": prompt, **answers}
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
    return _read_either(answer, column)


def _read_either(turns: object, column: str) -> list[Turn]:
    """Return turns that are written as messages or in ShareGPT layout."""
    listed = as_list(turns)
    if listed and is_sharegpt_turn(listed[0]):
        return read_sharegpt(turns, column)
    return read_turns(turns, column)


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
            prompt = with_system(values, _read_either(prompt, "prompt"))
        if not isinstance(answer, str):
            answer = _read_either(answer, "completion")
    else:
        turns = _read_either(values.get("messages"), "messages")
        turns = with_system(values, turns)
        prompt, answer = turns[:-1], turns[-1:]
    yield {"prompt": prompt, "completion": answer, "label": label}


def _is_rated(values: Values) -> bool:
    return isinstance(values.get("label"), bool)


LAYOUTS = [
    Layout(
        "preferences (prompt, chosen, rejected)",
        "preference",
        ("prompt", "chosen", "rejected"),
        EXTRAS,
        convert=convert_preference,
    ),
    Layout(
        "preferences in ShareGPT layout",
        "preference",
        ("conversations", "chosen", "rejected"),
        EXTRAS,
        convert=convert_preference,
    ),
    Layout(
        "preferences (chosen, rejected)",
        "preference",
        ("chosen", "rejected"),
        matches=has_messages("chosen", "rejected"),
        convert=convert_preference,
    ),
    Layout(
        "rated completions (KTO)",
        "rated",
        ("prompt", "completion", "label"),
        EXTRAS,
        _is_rated,
        convert_rated,
    ),
    Layout(
        "rated conversations (KTO)",
        "rated",
        ("messages", "label"),
        EXTRAS,
        _is_rated,
        convert_rated,
    ),
    Layout(
        "rated conversations (KTO)", "rated", ("messages", "kto_tag"), EXTRAS, convert=convert_rated
    ),
]
