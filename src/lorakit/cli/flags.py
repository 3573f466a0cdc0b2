"""Flags, YAML and help text from the fields of dataclasses: each setting is written down once."""

import argparse
import os
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from lorakit.errors import NOT_STARTED, SpecError
from lorakit.text import add_hint, did_you_mean, near_misses, plural, similar_settings

First = TypeVar("First")
Second = TypeVar("Second")
Values = dict[str, Any]
METAVARS = {int: "N", float: "X"}
LONGEST_CHOICES = 66  # characters in braces; longer choices are listed in the help text
CONFIG_HELP = "YAML file with any of these settings, and `overrides`; flags take precedence"
PATTERNS = ("targets", "exclude")
OUTPUTS = ("output", "plot")
UNKNOWN_FLAG = re.compile(r"(?<!\S)(?:-+[a-zA-Z][\w-]*|[a-zA-Z]\w*(?==))")
WRONG_CHOICE = re.compile(r"invalid choice: '(?P<value>.*)' \(choose from (?P<choices>.*)\)")
SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?e[+-]?\d+", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that refuses with a SpecError, and offers near misses of a flag."""

    def error(self, message: str) -> NoReturn:
        flags: list[str] = []
        for action in self._actions:
            flags += action.option_strings
        named = {option.lstrip("-").replace("-", "_"): option for option in flags}
        hints = []
        unknown = message.partition("unrecognized arguments:")[2]
        for word in UNKNOWN_FLAG.findall(unknown):
            similar = similar_settings(word.lstrip("-"), named)
            hint = did_you_mean(f"{named[name]} {value}".strip() for name, value in similar)
            hints.append(f"{word}: {hint}" if hint else "")
        choice = WRONG_CHOICE.search(message)
        if choice:
            choices = [word.strip("'") for word in choice["choices"].split(", ")]
            hints.append(near_misses(choice["value"], choices, 1))
        raise SpecError(
            f"{self.prog}: {message}.",
            [hint for hint in dict.fromkeys(hints) if hint],
            f"`{self.prog} --help` lists the flags. {NOT_STARTED}",
        )


class HelpFormatter(argparse.HelpFormatter):
    """Help texts whose lines are not broken at hyphens, which are part of names and flags."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def add_config(parser: argparse.ArgumentParser, text: str = CONFIG_HELP) -> None:
    """Add the flag --config, a YAML file of settings."""
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help=text)


def add_fields(
    parser: argparse.ArgumentParser,
    cls: type,
    title: str,
    *,
    only: Collection[str] | None = None,
    optional: Collection[str] = (),
) -> None:
    """Add a flag for each field of a dataclass, in its order.

    A flag that is not given leaves no value, so that the defaults stay with the dataclass.

    Args:
        parser: gets a group of flags.
        cls: a dataclass whose fields are made by `spec.option`.
        title: title of the group.
        only: names of fields; all by default.
        optional: names of required fields that the command can do without.
    """
    group = parser.add_argument_group(title)
    for one in fields(cls):
        is_flag = one.metadata.get("flag") is not False
        if is_flag and (only is None or one.name in only):
            is_required = one.metadata.get("required", False) and one.name not in optional
            text = _help(one, is_required=is_required)
            group.add_argument(_flag_of(one), help=text, **_arguments(one))


def _flag_of(one: Field[Any]) -> str:
    return one.metadata.get("flag") or flag_name(one.name)


def flag_name(field: str) -> str:
    """Return the flag of a field.

    >>> flag_name("batch_size")
    '--batch-size'
    """
    return "--" + field.replace("_", "-")


def _arguments(one: Field[Any]) -> Values:
    """Return the arguments by which argparse reads the flag of a field."""
    kind = one.metadata.get("type") or type(default_of(one))
    arguments: Values = {"default": argparse.SUPPRESS, "dest": one.name}
    if kind is bool:
        return {**arguments, "action": argparse.BooleanOptionalAction}
    if one.metadata.get("several"):
        arguments["nargs"] = "+"
        arguments["metavar"] = one.metadata.get("metavar", METAVARS.get(kind, "NAME"))
        arguments["type"] = kind if kind in METAVARS else str
        arguments["choices"] = one.metadata.get("choices")
        return arguments
    choices = one.metadata.get("choices")
    arguments |= {"type": kind, "choices": choices}
    if not choices:
        arguments["metavar"] = METAVARS.get(kind, "TEXT")
    elif _are_long(choices):
        arguments["metavar"] = one.name.upper()
    return arguments


def _are_long(choices: Iterable[str]) -> bool:
    return len(",".join(choices)) > LONGEST_CHOICES


def default_of(one: Field[Any]) -> object:
    """Return the default of a field."""
    return one.default if one.default_factory is MISSING else one.default_factory()


def _help(one: Field[Any], *, is_required: bool) -> str:
    text: str = one.metadata["help"]
    choices = one.metadata.get("choices") or ()
    if _are_long(choices):
        text += f". One of {', '.join(choices)}"
    if is_required:
        text += " (required)"
    elif "default" not in text:
        text += _default_text(default_of(one))
    return text.replace("%", "%%")


def _default_text(value: object) -> str:
    """Return a default in brackets, or an empty text for a value that is off or empty.

    >>> _default_text(0.0), _default_text(True), _default_text(False)
    (' (default: 0)', ' (default: yes)', '')
    """
    if value is None or value is False or value in ("", ()):
        return ""
    if value is True:
        return " (default: yes)"
    shown = f"{value:g}" if isinstance(value, float) else value
    return f" (default: {shown})"


def read_settings(args: argparse.Namespace, *classes: type) -> list[Values]:
    """Return the values that were given for each class's fields: from --config, then from flags.

    Raises:
        SpecError: the YAML file is missing or broken, or has a key that is no field of any class;
            or a number is below the least that its field allows.
        OutputError: the output cannot be made.
    """
    flagged = {key: value for key, value in vars(args).items() if key != "config"}
    given = {**_read_yaml(getattr(args, "config", None), classes), **flagged}
    _check_least(given, classes)
    for key, value in given.items():
        # A shell has expanded `~` already; a YAML file has not.
        if isinstance(value, list):
            given[key] = [_expand_home(one) for one in value]
        else:
            given[key] = _expand_home(value)
    for key in PATTERNS:
        if isinstance(flagged.get(key), list):
            given[key] = parse_names(flagged[key])
    _check_outputs([given[key] for key in OUTPUTS if given.get(key)])
    return [_of_class(given, cls) for cls in classes]


def _expand_home(value: object) -> object:
    if isinstance(value, str) and value.startswith("~/"):
        return os.path.expanduser(value)
    return value


def _check_outputs(paths: Iterable[object]) -> None:
    """Refuse outputs that cannot be made, before anything is loaded."""
    from lorakit.files import check_can_be_made  # here, because `--help` needs none of it

    for path in paths:
        if isinstance(path, str):
            check_can_be_made(Path(path))


def make_both(
    first: tuple[type[First], Values], second: tuple[type[Second], Values]
) -> tuple[First, Second]:
    """Return an object of each class from its values, or refuse with the faults of both.

    Raises:
        SpecError: values that a class does not take.
    """
    faults: list[str] = []
    refused = 0
    for cls, values in (first, second):
        try:
            cls(**values)
        except SpecError as error:
            faults += error.faults
            refused += 1
    if refused == 2:
        raise SpecError(f"{plural(len(faults), 'fault')} in the settings.", faults, NOT_STARTED)
    return first[0](**first[1]), second[0](**second[1])


def _of_class(given: Mapping[str, Any], cls: type) -> Values:
    return {one.name: given[one.name] for one in fields(cls) if one.name in given}


def _check_least(given: Mapping[str, Any], classes: Iterable[type]) -> None:
    faults = []
    for cls in classes:
        for one in fields(cls):
            least = one.metadata.get("least")
            value = given.get(one.name)
            if least is not None and value is not None and value < least:
                faults.append(f"{_flag_of(one)}: at least {least} is needed, got {value}")
    if faults:
        count = plural(len(faults), "number")
        raise SpecError(f"{count} too small.", list(dict.fromkeys(faults)), NOT_STARTED)


def parse_names(words: list[str]) -> str | tuple[str, ...]:
    """Return the value of --targets: a preset, name or regular expression, or several names.

    >>> parse_names(["qv"]), parse_names(["q_proj,v_proj"]), parse_names(["*.q_proj"])
    ('qv', ('q_proj', 'v_proj'), ('*.q_proj',))
    """
    first = words[0]
    if len(words) == 1 and _is_expression(first):
        return first
    names: list[str] = []
    for word in words:
        names += [name for name in word.split(",") if name]
    if len(names) == 1 and not set("*?") & set(names[0]):
        return names[0]
    return tuple(names)


def _is_expression(word: str) -> bool:
    has_sign = any(sign in word for sign in r"\^$|()[]{}+")
    return has_sign or ".*" in word


def _read_yaml(path: str | None, classes: tuple[type, ...]) -> Values:
    if path is None:
        return {}
    from lorakit.cli.yaml_file import read_yaml

    content = read_yaml(path)
    given = {str(key).replace("-", "_"): _as_number(value) for key, value in content.items()}
    known: list[str] = []
    for cls in classes:
        known += [one.name for one in fields(cls)]
    faults = []
    for key in given:
        if key not in known:
            similar = similar_settings(key, known)
            hint = did_you_mean(f"{name}: {value}" if value else name for name, value in similar)
            faults.append(add_hint(f"{key!r} is no setting", hint))
    if faults:
        count = plural(len(faults), "unknown key")
        raise SpecError(f"{count} in {path}.", faults, NOT_STARTED)
    return given


def _as_number(value: object) -> object:
    """Return 1e-4 as a number: YAML 1.1 reads it as text."""
    if isinstance(value, str) and SCIENTIFIC.fullmatch(value):
        return float(value)
    return value
