"""Conversations: messages as OpenAI and TRL write them, ShareGPT's turns, and lists of texts."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lorakit.data.layouts.layout import (
    Layout,
    Row,
    RowFault,
    Values,
    as_list,
    as_objects,
    first_given,
    read_text,
)

Test = Callable[[Values], bool]
Turn = dict[str, Any]  # role, content, and what else the template reads

# Roles as messages call them, by the names that data sets use.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "ai": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
}
# Further names in ShareGPT layout; a template of messages may have its own meaning for them.
ROLES = {
    **SPEAKERS,
    **dict.fromkeys(("bard", "bing", "claude"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "tool_response"), "tool"),
}
THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # keys of the assistant's thinking
CALLS = ("function_call", "tool_call")  # roles of turns in which the assistant calls tools
# What is said and answered, as one turn of Capybara and the like has them.
EXCHANGES = (("input", "output"), ("human", "assistant"), ("user", "assistant"))
WEIGHTS = ("weight", "train", "loss")  # names for whether a turn is learned
NO_TEXTS = ("image", "images", "audio", "audios", "video", "videos")


def read_turns(turns: object, column: str) -> list[Turn]:
    """Return the turns of a conversation: `content` is a text, or absent beside tool calls.

    They are messages (`role`, `content`), ShareGPT's turns (`from`, `value`), exchanges (`input`,
    `output`), or texts of which the user says the first and the assistant the second.

    Raises:
        RowFault: it is no list of turns, or a turn has no role or content.
    """
    listed = list_turns(turns)
    if not listed:
        fault = "is missing" if turns is None else "is not a list of turns"
        raise RowFault(f"{column!r} {fault}")
    if all(isinstance(turn, str) for turn in listed):
        return [_say(number % 2, text) for number, text in enumerate(listed)]
    found: list[Turn] = []
    for number, turn in enumerate(listed, 1):
        for read in _read_any_turn(turn, f"turn {number} of {column!r}"):
            if not (_is_sharegpt_call(turn) and _join_calls(found, read)):
                found.append(read)
    return found


def _is_sharegpt_call(turn: object) -> bool:
    return isinstance(turn, Mapping) and "role" not in turn and turn.get("from") in CALLS


def _join_calls(turns: Sequence[Turn], calls: Turn) -> bool:
    """Add calls to the turn before, if it is the assistant's too: ShareGPT gives each its own turn.

    Returns:
        False if they are not of one turn.
    """
    if not turns:
        return False
    last = turns[-1]
    are_alike = all(last.get(key) == calls.get(key) for key in WEIGHTS)
    if last["role"] != "assistant" or not are_alike:
        return False
    last["tool_calls"] = [*last.get("tool_calls", ()), *calls["tool_calls"]]
    return True


def list_turns(turns: object) -> list[Any] | None:
    """Return turns that may be written as a JSON text, or as an object of lists; None if none."""
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            return None
    return as_objects(turns)


def _read_any_turn(turn: object, place: str) -> list[Turn]:
    if not isinstance(turn, Mapping):
        return [read_turn(turn, place)]
    beside = first_given(turn, NO_TEXTS)
    if beside is not None:
        raise RowFault(f"{place} has {beside!r}, only text can be used")
    if "from" in turn and "role" not in turn:
        return [_read_sharegpt_turn(turn, place)]
    if "role" in turn:
        return [read_turn(turn, place)]
    for keys in EXCHANGES:
        said = [turn.get(key) for key in keys]
        if all(isinstance(text, str) for text in said):
            exchange = [_say(number, str(text)) for number, text in enumerate(said)]
            return with_system(turn, exchange)
    return [read_turn(turn, place)]


def _say(number: int, text: str) -> Turn:
    return {"role": ("user", "assistant")[number], "content": text}


def read_turn(turn: object, place: str) -> Turn:
    """Return a message with a text as content.

    Raises:
        RowFault: it has no role, no content, or parts that are no text.
    """
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        raise RowFault(f"{place} has no 'role' and 'content' as text")
    given = {str(key): value for key, value in turn.items() if value is not None}
    given["role"] = SPEAKERS.get(given["role"].lower(), given["role"])
    if "function_call" in given:  # OpenAI's older name for a single call
        given.setdefault("tool_calls", [given.pop("function_call")])
    if "parts" in given:  # Gemini's name
        given.setdefault("content", given.pop("parts"))
    content = given.get("content")
    if content is None:
        if not given.get("tool_calls"):
            raise RowFault(f"{place} has no 'role' and 'content' as text")
        given["content"] = ""
    elif not isinstance(content, str):
        given |= join_parts(content, place)
    if "tool_calls" in given:
        given["tool_calls"] = read_calls(given["tool_calls"], place)
    return given


def join_parts(parts: object, place: str) -> Turn:
    """Return the text of content parts, and that of thinking parts beside it.

    Raises:
        RowFault: a part is an image, a sound or something else that is no text.
    """
    listed = as_list(parts)
    if listed is None:
        raise RowFault(f"{place} has no 'role' and 'content' as text")
    texts: dict[str, list[str]] = {"content": [], "reasoning_content": []}
    for part in listed:
        key, text = _read_part(part)
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RowFault(f"{place} has a part of type {kind!r}, only text can be used")
        texts[key].append(text)
    joined = {key: "".join(pieces) for key, pieces in texts.items()}
    return {key: text for key, text in joined.items() if text or key == "content"}


def _read_part(part: object) -> tuple[str, object]:
    """Return the key of a turn that a part of its content belongs to, and its text."""
    if not isinstance(part, Mapping):
        return "content", part
    if part.get("type") == "thinking":
        return "reasoning_content", part.get("thinking")
    return "content", part.get("text")


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
        own_arguments = function.get("arguments") or {}
        arguments = parse_json(own_arguments, f"{place}: arguments of a tool call")
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
    column = first_given(values, TOOLS)
    if column is None:
        return []
    parsed = parse_json(values[column], f"{column!r}")
    if not isinstance(parsed, list) or not all(isinstance(tool, Mapping) for tool in parsed):
        raise RowFault(f"{column!r} is not a list of objects")
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
        weights = [turn.pop(key) for key in WEIGHTS if key in turn]
        weight = weights[0] if weights else 1
        if weight not in (0, 1):
            raise RowFault(f"turn {number} of {column!r} has the weight {weight!r}, not 0 or 1")
        is_answer = turn["role"] == "assistant" and number > context
        trained.append(is_answer and bool(weight) and has_content(turn))
    if not any(trained):
        unknown = [turn["role"] for turn in turns if turn["role"] not in SPEAKERS]
        of_others = f", but one of {unknown[0]!r}" if unknown else ""
        raise RowFault(f"{column!r} has no assistant turn to learn from{of_others}")
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
    """Return the turns after the system prompt that a column holds, if it holds one.

    Raises:
        RowFault: it is no text, or the turns begin with another system prompt.
    """
    column = first_given(values, SYSTEM)
    if column is None:
        return turns
    system = _read_system(values, column)
    if turns[0]["role"] == "system":
        if turns[0]["content"] != system:
            raise RowFault("has a system prompt in a column and another one in its turns")
        return turns
    return [{"role": "system", "content": system}, *turns]


def _read_system(values: Values, column: str) -> str:
    """Return a system prompt, which Gemini's files hold as parts."""
    value = values[column]
    if isinstance(value, Mapping) and "parts" in value:
        return str(join_parts(value["parts"], repr(column))["content"])
    return read_text(values, column)


def convert_messages(layout: Layout, values: Values) -> Iterator[Row]:
    column = str(layout.columns[0])
    turns = with_system(values, read_turns(values.get(column), column))
    yield make_row(turns, read_tools(values), column)


def _read_sharegpt_turn(turn: Mapping[str, Any], place: str) -> Turn:
    """Return a turn with `from` and `value` as a message.

    Raises:
        RowFault: they are no texts, or its speaker is not known.
    """
    name, value = turn.get("from"), turn.get("value")
    if not isinstance(name, str) or not isinstance(value, str):
        raise RowFault(f"{place} has no 'from' and 'value' as text")
    weight = {key: turn[key] for key in WEIGHTS if turn.get(key) is not None}
    if name in CALLS:
        parsed = parse_json(value, f"{place}: tool calls")
        calls = read_calls(parsed if isinstance(parsed, list) else [parsed], place)
        return {"role": "assistant", "content": "", "tool_calls": calls, **weight}
    role = ROLES.get(name.lower())
    if role is None:
        raise RowFault(f"{place} is from {name!r}, which is none of {', '.join(sorted(ROLES))}")
    return {"role": role, "content": value, **weight}


def convert_prompted(layout: Layout, values: Values) -> Iterator[Row]:
    """Yield a row whose prompt and completion are lists of messages, as in TRL."""
    before = with_system(values, read_turns(values.get("prompt"), "prompt"))
    answer = read_turns(values.get("completion"), "completion")
    yield make_row([*before, *answer], read_tools(values), "completion", context=len(before))


def has_turns(*columns: str, key: str = "") -> Test:
    """Return a test whether these columns of a record are lists of turns.

    Args:
        *columns: names of the columns.
        key: that the first turn has to have: `role` or `from`; either if it is empty.
    """
    keys = {key} if key else {"role", "from"}

    def test(values: Values) -> bool:
        return all(_begins_with(values.get(column), keys) for column in columns)

    return test


def _begins_with(turns: object, keys: set[str]) -> bool:
    listed = list_turns(turns)
    return bool(listed) and isinstance(listed[0], Mapping) and not keys.isdisjoint(listed[0])


TOOLS, SYSTEM = ("tools", "functions"), ("system", "system_prompt", "systemInstruction")
EXTRAS = (*TOOLS, *SYSTEM)
COLUMNS = ("messages", "conversations", "conversation")
LAYOUTS = [
    Layout(
        "prompt and completion as messages (TRL)",
        "messages",
        ("prompt", "completion"),
        EXTRAS,
        has_turns("prompt", "completion"),
        convert_prompted,
    ),
    *(
        Layout(
            "messages in ShareGPT layout",
            "messages",
            (column,),
            EXTRAS,
            has_turns(column, key="from"),
            convert_messages,
        )
        for column in COLUMNS
    ),
    *(
        Layout("messages", "messages", (column,), EXTRAS, convert=convert_messages)
        for column in COLUMNS
    ),
    Layout(
        "messages (Gemini)",
        "messages",
        ("contents",),
        EXTRAS,
        has_turns("contents", key="role"),
        convert_messages,
    ),
]
