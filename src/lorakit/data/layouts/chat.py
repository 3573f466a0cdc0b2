"""Conversations: messages as OpenAI and TRL write them, and ShareGPT's turns."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lorakit.data.layouts.layout import Layout, Row, RowFault, Values, as_list, is_given, read_text

Test = Callable[[Values], bool]
Turn = dict[str, Any]  # role, content, and what else the template reads

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # keys of the assistant's thinking
CALLS = ("function_call", "tool_call")  # roles of turns in which the assistant calls tools


def read_turns(turns: object, column: str) -> list[Turn]:
    """Return the turns of a conversation: `content` is a text, or absent beside tool calls.

    Raises:
        RowFault: it is no list of turns, or a turn has no role or content.
    """
    found = as_list(turns)
    if not found:
        raise RowFault(f"{column!r} is not a list of turns")
    return [read_turn(turn, f"turn {number} of {column!r}") for number, turn in enumerate(found, 1)]


def read_turn(turn: object, place: str) -> Turn:
    """Return one turn with a text as content.

    Raises:
        RowFault: it has no role, no content, or parts that are no text.
    """
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        raise RowFault(f"{place} has no 'role' and 'content' as text")
    given = {str(key): value for key, value in turn.items() if value is not None}
    content = given.get("content")
    if content is None:
        if not given.get("tool_calls"):
            raise RowFault(f"{place} has no 'role' and 'content' as text")
        given["content"] = ""
    elif not isinstance(content, str):
        given["content"] = join_parts(content, place)
    if "tool_calls" in given:
        given["tool_calls"] = read_calls(given["tool_calls"], place)
    return given


def join_parts(parts: object, place: str) -> str:
    """Return the text of content parts.

    Raises:
        RowFault: a part is an image, a sound or something else that is no text.
    """
    listed = as_list(parts)
    if listed is None:
        raise RowFault(f"{place} has no 'role' and 'content' as text")
    texts: list[str] = []
    for part in listed:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RowFault(f"{place} has a part of type {kind!r}, only text can be used")
        texts.append(text)
    return "".join(texts)


def read_calls(calls: object, place: str) -> list[Turn]:
    """Return tool calls with their arguments as objects, as chat templates read them.

    Raises:
        RowFault: a call names no function, or its arguments are not JSON.
    """
    listed = as_list(calls)
    if listed is None:
        raise RowFault(f"{place} has 'tool_calls' that are no list")
    found: list[Turn] = []
    for call in listed:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowFault(f"{place} has a tool call without a function's name")
        arguments = parse_json(function.get("arguments", {}), f"{place}: arguments of a tool call")
        own = {"name": function["name"], "arguments": arguments}
        given = {str(key): value for key, value in call.items() if value is not None}
        outer = {key: given[key] for key in ("id",) if key in given}
        found.append({**outer, "type": "function", "function": own})
    return found


def parse_json(value: object, place: str) -> Any:  # noqa: ANN401  any JSON value
    """Return a value that may be written as a JSON text.

    Raises:
        RowFault: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowFault(f"{place} are not JSON: {error}") from error


def read_tools(values: Values) -> list[Turn]:
    """Return the tools of a conversation: a list, or a JSON text of one.

    Raises:
        RowFault: they are no list of objects.
    """
    tools = values.get("tools")
    if not is_given(tools):
        return []
    parsed = parse_json(tools, "'tools'")
    if not isinstance(parsed, list) or not all(isinstance(tool, Mapping) for tool in parsed):
        raise RowFault("'tools' is not a list of objects")
    found: list[Turn] = []
    for tool in parsed:
        is_wrapped = "function" in tool
        found.append(dict(tool) if is_wrapped else {"type": "function", "function": dict(tool)})
    return found


def make_row(turns: list[Turn], tools: list[Turn], column: str, context: int = 0) -> Row:
    """Return the row of a conversation.

    Args:
        turns: all turns.
        tools: that the assistant may call.
        column: that the turns come from, for messages.
        context: number of turns at the start that are only read.

    Raises:
        RowFault: no turn could be learned, or a weight is neither 0 nor 1.
    """
    trained: list[bool] = []
    for number, turn in enumerate(turns, 1):
        weight = turn.pop("weight", turn.pop("train", 1))
        if weight not in (0, 1):
            raise RowFault(f"turn {number} of {column!r} has the weight {weight!r}, not 0 or 1")
        is_answer = turn["role"] == "assistant" and number > context
        trained.append(is_answer and bool(weight) and has_content(turn))
    if not any(trained):
        raise RowFault(f"{column!r} has no assistant turn to learn from")
    row: Row = {"messages": turns}
    if tools:
        row["tools"] = tools
    answers = [turn["role"] == "assistant" and has_content(turn) for turn in turns]
    if trained != answers:
        row["trained"] = trained
    return row


def has_content(turn: Mapping[str, Any]) -> bool:
    """Return True if a turn says or thinks something, or calls a tool."""
    is_thinking = any(turn.get(key) for key in THOUGHTS)
    return bool(turn["content"].strip() or turn.get("tool_calls") or is_thinking)


def with_system(values: Values, turns: list[Turn]) -> list[Turn]:
    """Return the turns after the system prompt that a column holds, if it holds one."""
    system = read_text(values, "system")
    return [{"role": "system", "content": system}, *turns] if system else turns


def convert_messages(layout: Layout, values: Values) -> Iterator[Row]:
    column = str(layout.columns[0])
    turns = with_system(values, read_turns(values.get(column), column))
    yield make_row(turns, read_tools(values), column)


def convert_sharegpt(layout: Layout, values: Values) -> Iterator[Row]:
    column = str(layout.columns[0])
    turns = with_system(values, read_sharegpt(values.get(column), column))
    yield make_row(turns, read_tools(values), column)


def read_sharegpt(turns: object, column: str) -> list[Turn]:
    """Return ShareGPT's turns (`from`, `value`) with the roles of messages.

    Raises:
        RowFault: it is no list of such turns, or a role is not known.
    """
    listed = as_list(turns)
    if not listed:
        raise RowFault(f"{column!r} is not a list of turns")
    found: list[Turn] = []
    for number, turn in enumerate(listed, 1):
        place = f"turn {number} of {column!r}"
        if not is_sharegpt_turn(turn):
            raise RowFault(f"{place} has no 'from' and 'value' as text")
        found.append(_read_sharegpt_turn(turn, place))
    return found


def is_sharegpt_turn(turn: object) -> bool:
    """Return True for an object with the texts `from` and `value`."""
    if not isinstance(turn, Mapping):
        return False
    return isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)


def _read_sharegpt_turn(turn: Mapping[str, Any], place: str) -> Turn:
    name, value = turn["from"], turn["value"]
    weight = {"weight": turn["weight"]} if turn.get("weight") is not None else {}
    if name in CALLS:
        parsed = parse_json(value, f"{place}: tool calls")
        calls = parsed if isinstance(parsed, list) else [parsed]
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": read_calls(calls, place),
            **weight,
        }
    if name not in ROLES:
        raise RowFault(f"{place} is from {name!r}, which is none of {', '.join(sorted(ROLES))}")
    return {"role": ROLES[name], "content": value, **weight}


def convert_prompted(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield a row whose prompt and completion are lists of messages, as in TRL."""
    before = with_system(values, read_turns(values["prompt"], "prompt"))
    answer = read_turns(values["completion"], "completion")
    yield make_row([*before, *answer], read_tools(values), "completion", context=len(before))


def has_messages(*columns: str) -> Test:
    """Return a test whether these columns of a record are lists of turns with a role."""

    def test(values: Values) -> bool:
        return all(_begins_with(values.get(column), "role") for column in columns)

    return test


def has_sharegpt(column: str) -> Test:
    """Return a test whether a column of a record is a list of turns with `from`."""

    def test(values: Values) -> bool:
        return _begins_with(values.get(column), "from")

    return test


def _begins_with(turns: object, key: str) -> bool:
    listed = as_list(turns)
    return bool(listed) and isinstance(listed[0], Mapping) and key in listed[0]


EXTRAS = ("tools", "system")
LAYOUTS = [
    Layout(
        "prompt and completion as messages (TRL)",
        "messages",
        ("prompt", "completion"),
        EXTRAS,
        has_messages("prompt", "completion"),
        convert_prompted,
    ),
    *(
        Layout(
            "messages in ShareGPT layout",
            "messages",
            (column,),
            EXTRAS,
            has_sharegpt(column),
            convert_sharegpt,
        )
        for column in ("conversations", "conversation", "messages")
    ),
    *(
        Layout("messages", "messages", (column,), EXTRAS, convert=convert_messages)
        for column in ("messages", "conversations", "conversation")
    ),
]
