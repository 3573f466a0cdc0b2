"""Forms of turns: what a chat template reads as a text, a list or an object, found by trying."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lorakit.data.limits import BYTES, SECONDS, TimeExceeded, limited

Turn = Mapping[str, Any]

MARKS = ("\ue001", "\ue002", "\ue003")  # characters that stand in no template
SYSTEM, USER, ASSISTANT = (
    {"role": role, "content": mark}
    for role, mark in zip(("system", "user", "assistant"), MARKS, strict=True)
)
ARGUMENT = "argument"
CALL = {"name": "look", "arguments": {ARGUMENT: MARKS[2]}}
# Some templates refuse identifiers of another length.
CALLING = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call00001", "type": "function", "function": CALL}],
}
# What is written where a template takes a list or an object for a text, or a text for an object.
MISREAD = ("'type':", f"'{ARGUMENT}'", f'\\"{ARGUMENT}\\"')


@dataclass(frozen=True)
class Form:
    """The form in which a chat template reads turns.

    Attributes:
        has_parts: True if the content is a list of parts, as in templates for images.
        has_json: True if the arguments of a call are a JSON text, and no object.
    """

    has_parts: bool = False
    has_json: bool = False

    def fit(self, turn: Turn) -> dict[str, Any]:
        """Return a turn in this form; its own content is a text.

        >>> Form(has_parts=True).fit({"role": "user", "content": "Hi"})["content"]
        [{'type': 'text', 'text': 'Hi'}]
        """
        fitted = dict(turn)
        calls = turn.get("tool_calls")
        if calls and self.has_json:
            fitted["tool_calls"] = [_with_json(call) for call in calls]
        if self.has_parts:
            fitted["content"] = [{"type": "text", "text": turn["content"]}]
        return fitted


def _with_json(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call whose arguments are a JSON text."""
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


@lru_cache(maxsize=64)
def find_form(template: str, special_tokens: tuple[tuple[str, str], ...]) -> Form:
    """Return the form of turns by which a template writes all of them.

    Args:
        template: in jinja.
        special_tokens: names and texts, which the template may write.
    """
    try:
        return _find_form(template, dict(special_tokens))
    except TimeExceeded:  # told when it renders a row
        return Form()


def _find_form(template: str, tokens: Mapping[str, str]) -> Form:
    shown = [_count_shown(template, tokens, Form(has_parts)) for has_parts in (False, True)]
    has_parts = shown[True] > shown[False]
    takes_object, takes_json = (
        MARKS[2] in _try(template, tokens, [USER, CALLING], Form(has_parts, has_json))
        for has_json in (False, True)
    )
    return Form(has_parts, has_json=takes_json and not takes_object)


def _count_shown(template: str, tokens: Mapping[str, str], form: Form) -> int:
    """Return the number of turns whose content is in a rendering; some templates refuse SYSTEM."""
    text = _try(template, tokens, [SYSTEM, USER, ASSISTANT], form)
    text = text or _try(template, tokens, [USER, ASSISTANT], form)
    return sum(mark in text for mark in MARKS)


def _try(template: str, tokens: Mapping[str, str], turns: Sequence[Turn], form: Form) -> str:
    """Return the rendering of turns in a form; empty if the template refuses or misreads them."""
    from transformers.utils.chat_template_utils import render_jinja_template

    fitted = [form.fit(turn) for turn in turns]
    special: dict[str, Any] = {**tokens}
    try:
        with limited(SECONDS, BYTES):
            rendered: Any = render_jinja_template([fitted], chat_template=template, **special)
    except Exception:  # of any class, since a template is a program of its own
        return ""
    ((text,), _) = rendered
    return "" if any(sign in text for sign in MISREAD) else str(text)
