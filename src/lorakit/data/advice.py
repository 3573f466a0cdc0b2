"""Advice on the columns of a file whose layout is not known."""

import re
import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import islice, permutations
from typing import Any

from lorakit.data.layouts import KEYS
from lorakit.data.layouts.chat import SYSTEM, list_turns
from lorakit.data.layouts.layout import as_list, first_given
from lorakit.text import add_hint, did_you_mean

# What columns are often called, by the key that they stand for.
OFTEN = {
    "prompt": "prompt instruction question query problem input inputs source src context article "
    "dialogue document passage request user human input_text mr text",
    "completion": "completion answer answers response output target targets reply summary "
    "highlights solution ref tgt chosen assistant bot gpt output_text",
    "label": "label labels gold_label class class_index category stars rating sentiment intent "
    "emotion topic target",
    "text": "text review comment content body tweet sentence document message chat",
}
# Sets of keys that make a row, as far as their columns are found; the fullest first.
SETS = (("prompt", "completion"), ("text_a", "text_b", "label"), ("text", "label"), ("text",))
REQUEST = ("instruction", "output")  # keys of a prompt and its completion beside a system prompt
SUPPORTED = (
    "text; prompt + completion; messages; text + label; text_a + text_b + label; text + labels; "
    "tokens + tags"
)
FLAGS = ("0", "1", "0.0", "1.0", "true", "false")  # values of a column for one of several labels
CHOICES = ("choices", "options")  # lists of answers, of which one is right
SHOWN, SAMPLE = 12, 40  # columns, characters
LONGEST_CLASS = 20  # characters of a column without a name that may hold the name of a class
SIMILAR = 0.75  # names are misspelled keys from here on
NO_TEXT = re.compile(r"(.*_)?(id|idx|index|uid|uuid|hash|url|date|time|timestamp)")


def advise_columns(values: Mapping[Any, Any], *, is_table: bool) -> tuple[list[str], str]:
    """Return what the columns of a row hold, and the flags that may name them.

    Args:
        values: of the first row.
        is_table: True if the columns have numbers too.

    >>> advise_columns({"review": "Well made, it lasts.", "stars": "5"}, is_table=False)[1]
    'Name the columns, as in --columns text=review label=stars.'
    """
    has_numbers = any(isinstance(name, int) for name in values)
    if is_table and not has_numbers and _is_data(list(values)):
        values, has_numbers = dict(enumerate(values)), True
    faults = [
        f"its first row has {_show(name, value, number if is_table and not has_numbers else None)}"
        for number, (name, value) in enumerate(islice(values.items(), SHOWN))
    ]
    faults.append(f"known are, beside published layouts: {SUPPORTED}")
    example = suggest_columns(values)
    flags = list_flags(values)
    if flags and "label=" not in example:
        return faults, advise_list(flags)
    if not example:
        return faults, "Write rows with the keys of one of these: no column holds a text."
    if has_numbers:
        return faults, f"No line names the columns: use their numbers, as in --columns {example}."
    advice = f"Name the columns, as in --columns {example}."
    if is_table:
        advice += " If the first line names no columns, use their numbers."
    return faults, add_hint(advice, did_you_mean(_misspelled(values)))


def suggest_columns(values: Mapping[Any, Any]) -> str:
    """Return pairs of keys and columns that make a row of a record; empty if nothing does.

    >>> suggest_columns({"id": "a1", "article": "It rained.", "highlights": "Rain."})
    'prompt=article completion=highlights'
    """
    listed = _find_lists(values)
    if listed:
        return listed
    found = _find_columns(values)
    for keys in SETS:
        if all(key in found for key in keys):
            has_system = keys[0] == "prompt" and first_given(values, SYSTEM) is not None
            names = REQUEST if has_system else keys
            pairs = zip(names, keys, strict=True)
            return shlex.join(f"{name}={found[key]}" for name, key in pairs)
    turns = [name for name, value in values.items() if _may_be_turns(value)]
    return shlex.join([f"messages={turns[0]}"]) if turns else ""


def advise_list(flags: Sequence[str]) -> str:
    """Return advice on columns that hold one of several labels each."""
    shown = ", ".join(flags[:3]) + (" and others" if len(flags) > 3 else "")
    return (
        f"The columns {shown} seem to say which of several labels a text has: write the names of "
        "those that it has as a list, in a column called labels of a JSON Lines file."
    )


def list_flags(values: Mapping[Any, Any]) -> list[str]:
    """Return the columns that seem to hold one of several labels each; none if it is a single one.

    >>> list_flags({"comment": "a", "toxic": 0, "threat": 1}), list_flags({"text": "a", "label": 1})
    (['toxic', 'threat'], [])
    """
    flags = [
        str(name)
        for name, value in values.items()
        if str(value).lower() in FLAGS and not NO_TEXT.fullmatch(str(name).strip().lower())
    ]
    return flags if len(flags) > 1 else []


def _find_lists(values: Mapping[Any, Any]) -> str:
    """Return pairs of keys and columns for tokens with tags, or for a text with several labels."""
    lists = {name: value for name, value in values.items() if _is_words(value)}
    names = [*lists]
    for tokens, tags in permutations(names, 2):
        are_texts = all(isinstance(token, str) for token in lists[tokens])
        if are_texts and len(lists[tokens]) == len(lists[tags]):
            return shlex.join([f"tokens={tokens}", f"tags={tags}"])
    texts = [name for name, value in values.items() if _is_text(name, value)]
    others = [name for name, value in values.items() if as_list(value) and name not in lists]
    is_labels = not others and names and names[0] not in (*OFTEN["completion"].split(), *CHOICES)
    if is_labels and len(texts) == len(names) == 1:
        return shlex.join([f"text={texts[0]}", f"labels={names[0]}"])
    return ""


def _is_words(value: object) -> bool:
    """Return True for a list of short words, or of numbers."""
    listed = as_list(value) or []
    return bool(listed) and all(isinstance(one, int) or _is_word(one) for one in listed)


def _is_data(names: Sequence[str]) -> bool:
    """Return True if the first line of a table holds a row and not the names of columns."""
    return any(_is_value(name) for name in names)


def _is_value(name: str) -> bool:
    return len(name.split()) > 3 or bool(re.fullmatch(r"[-+]?\d+(\.\d*)?", name.strip()))


def _show(name: object, value: object, number: int | None) -> str:
    """Return a column as it is shown: its name or its number or both, and a value of it."""
    shown = _shorten(value)
    if isinstance(name, int):
        return f"column {name} {shown!r}"
    named = repr(name) if number is None else f"column {number} {_shorten(repr(name))}"
    return f"{named}: {shown}"


def _shorten(value: object) -> str:
    """Return the beginning of a value, on one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= SAMPLE else f"{text[:SAMPLE]}…"


def _misspelled(values: Mapping[Any, Any]) -> list[str]:
    """Return the key that a column's name seems to mean, if one does."""
    usual = {*" ".join(OFTEN.values()).split(), *KEYS}
    for name in values:
        if str(name).lower() not in usual:
            close = get_close_matches(str(name), KEYS, 1, SIMILAR)
            if close:
                return close
    return []


def _find_columns(values: Mapping[Any, Any]) -> dict[str, object]:
    """Return the column that each key may stand for: by its name, else by what it holds."""
    if any(_begins_a_chat(value) for value in values.values()):
        return {}
    values = {name: value for name, value in values.items() if name != ""}  # no flag can name it
    texts = [name for name, value in values.items() if _is_text(name, value)]
    by_key = {key: _find_named(key, values, texts) for key in OFTEN}
    found = {key: name for key, name in by_key.items() if name is not None}
    label = found.get("label", _find_class(values, texts))
    texts = [name for name in texts if name != label]
    if not texts:
        return {}
    if label is not None:
        found["label"] = label
    sentences = [name for name in texts if " " in values[name].strip()]
    if len(sentences) == 2:
        found |= {"text_a": sentences[0], "text_b": sentences[1]}
    if found.get("text") in (None, label):
        found["text"] = max(texts, key=lambda name: len(values[name]))
    if found.get("prompt") == found.get("completion"):
        found.pop("prompt", None)
    return found


def _find_named(key: str, values: Mapping[Any, Any], texts: Sequence[object]) -> object:
    """Return the column that is called as those of a key often are, the usual names first."""
    for often in OFTEN[key].split():
        for name, value in values.items():
            fits = _is_class(value) if key == "label" else name in texts
            if fits and str(name).strip().lower().replace(" ", "_") == often:
                return name
    return None


def _find_class(values: Mapping[Any, Any], texts: Sequence[object]) -> object:
    """Return the column that may hold classes: an answer of true or false, or a short word."""
    answers = OFTEN["completion"].split()
    for name, value in values.items():
        is_answer = name in answers and isinstance(value, bool | int)
        is_short = isinstance(name, int) and len(texts) > 1 and _is_word(value)
        if is_answer or is_short:
            return name
    return None


def _is_word(value: object) -> bool:
    return isinstance(value, str) and len(value.split()) == 1 and len(value) <= LONGEST_CLASS


def _is_text(name: object, value: object) -> bool:
    """Return True if a column may hold the text to learn."""
    is_named_so = not NO_TEXT.fullmatch(str(name).strip().lower())
    return isinstance(value, str) and bool(value.strip()) and is_named_so


def _is_class(value: object) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and bool(value.strip()))


def _begins_a_chat(value: object) -> bool:
    """Return True for a list of messages or of ShareGPT's turns."""
    listed = list_turns(value)
    if not listed or not isinstance(listed[0], Mapping):
        return False
    return any(pair <= set(listed[0]) for pair in ({"role", "content"}, {"from", "value"}))


def _may_be_turns(value: object) -> bool:
    """Return True for turns, and for texts that two may have said in turn."""
    listed = list_turns(value) or []
    are_texts = len(listed) > 1 and all(isinstance(text, str) for text in listed)
    are_sentences = are_texts and any(" " in text for text in listed)
    return are_sentences or _begins_a_chat(value)
