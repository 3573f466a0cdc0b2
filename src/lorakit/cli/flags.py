"""Flags, YAML and help text made from the fields of Spec, TrainSpec and their like: one field, one
place.
"""

import argparse
import os
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from lorakit.errors import OutputError, SpecError
from lorakit.text import near_misses, plural


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose refusals are SpecErrors, with near misses of a mistyped flag."""

    def error(self, message: str) -> Any:
        known = [flag for action in self._actions for flag in action.option_strings]
        hints = [
            hint
            for word in re.findall(r"--[\w-]+", message.partition("unrecognized arguments:")[2])
            if (hint := near_misses(word, known))
        ]
        raise SpecError(
            f"{self.prog}: {message}.",
            hints,
            f"`{self.prog} --help` lists the flags. Nothing was started.",
        )


def add_fields(
    parser: argparse.ArgumentParser, cls: type, title: str, *, only: Iterable[str] | None = None
) -> None:
    """Add a flag for each field of a dataclass, in its order; a flag that is not given leaves no
    value.
    """
    group = parser.add_argument_group(title)
    for f in fields(cls):
        if f.metadata.get("flag") is False or (only is not None and f.name not in only):
            continue
        kind = f.metadata.get("type") or type(_default(f))
        more: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": f.name}
        if kind is bool:
            more["action"] = argparse.BooleanOptionalAction
        elif f.metadata.get("several"):
            more |= (
                {"nargs": "+", "metavar": "NAME"}
                if kind is not int
                else {"nargs": "+", "metavar": "N", "type": int}
            )
        else:
            more |= {"type": kind, "choices": f.metadata.get("choices")}
            if not more["choices"]:
                more["metavar"] = {int: "N", float: "X"}.get(kind, "TEXT")
        group.add_argument(
            f.metadata.get("flag") or "--" + f.name.replace("_", "-"), help=_help(f), **more
        )


def _default(f: Any) -> Any:
    return f.default_factory() if f.default is MISSING else f.default


def _help(f: Any) -> str:
    value, text = _default(f), f.metadata["help"].replace("%", "%%")
    if (
        f.metadata.get("required")
        or value is None
        or value is False
        or value in ("", ())
        or "default" in text
    ):
        return text
    return f"{text} (default: {'yes' if value is True else f'{value:g}' if isinstance(value, float) else value})"


def values(args: argparse.Namespace, *classes: type) -> list[dict[str, Any]]:
    """Return what was set of each class's fields: by --config first, then by flags.

    Raises:
        SpecError: the YAML file is missing or broken, or has a key that is no field of any class;
            or a number is below the least that its field has.
    """
    given: dict[str, Any] = {
        **_yaml(getattr(args, "config", None), classes),
        **{k: v for k, v in vars(args).items() if k != "config"},
    }
    least = {
        f.name: f.metadata["least"] for cls in classes for f in fields(cls) if "least" in f.metadata
    }
    faults = [
        f"--{name.replace('_', '-')}: at least {bound} is needed, got {given[name]}"
        for name, bound in least.items()
        if given.get(name) is not None and given[name] < bound
    ]
    if faults:
        raise SpecError(
            f"{plural(len(faults), 'number')} too small.", faults, "Nothing was started."
        )
    # A shell has expanded `~` already; a YAML file has not.
    given |= {
        k: os.path.expanduser(v)
        for k, v in given.items()
        if isinstance(v, str) and v.startswith("~/")
    }
    _check_place(given.get("output"))
    out = []
    for cls in classes:
        chosen = {f.name: given[f.name] for f in fields(cls) if f.name in given}
        for name in ("targets", "exclude"):
            if isinstance(chosen.get(name), list) and f"--{name}" in _flagged(args):
                chosen[name] = names(chosen[name])
        out.append(chosen)
    return out


def _check_place(output: Any) -> None:
    """Refuse, before an hour is spent, an output that could not be made where it was asked for."""
    if not isinstance(output, str) or not output:
        return
    path = Path(output).absolute()
    above = next(p for p in path.parents if p.exists())
    if not above.is_dir():
        raise OutputError(
            f"{output} cannot be made: {above} is a file.", advice="Nothing was started."
        )
    if not os.access(path if path.is_dir() else above, os.W_OK | os.X_OK):
        raise OutputError(
            f"{output} cannot be made: there is no permission to write in {path if path.is_dir() else above}.",
            advice="Nothing was started.",
        )


def _flagged(args: argparse.Namespace) -> set[str]:
    return {f"--{key}" for key in vars(args)}


def names(given: list[str]) -> Any:
    """Return what the words after --targets mean: one word is a preset, a name or a regular
    expression; several are names.

    >>> names(["qv"]), names(["q_proj,v_proj"]), names(["*.q_proj"])
    ('qv', ('q_proj', 'v_proj'), ('*.q_proj',))
    """
    expression = any(c in given[0] for c in r"\^$|()[]{}+") or ".*" in given[0]
    if len(given) == 1 and expression:
        return given[0]
    words = [word for item in given for word in item.split(",") if word]
    return words[0] if len(words) == 1 and not any(c in words[0] for c in "*?") else tuple(words)


def _yaml(path: str | None, classes: tuple[type, ...]) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise SpecError(
            f"{path} cannot be read: {str(error).splitlines()[0]}.", advice="Nothing was started."
        ) from error
    if not isinstance(found, dict):
        raise SpecError(f"{path} holds no `key: value` lines.", advice="Nothing was started.")
    found = {str(key).replace("-", "_"): value for key, value in found.items()}
    known = [f.name for cls in classes for f in fields(cls)]
    faults = [
        f"{key!r} is no setting {near_misses(key, known)}".rstrip()
        for key in found
        if key not in known
    ]
    if faults:
        raise SpecError(f"{len(faults)} unknown keys in {path}.", faults, "Nothing was started.")
    # YAML 1.1 reads 1e-4 as text.
    return {
        k: float(v)
        if isinstance(v, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", v, re.I)
        else v
        for k, v in found.items()
    }
