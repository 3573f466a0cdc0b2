"""Every exception of lorakit. Each is a LorakitError and also a class of the standard library."""

import json
from collections.abc import Iterable
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar, cast

from lorakit.text import add_hint, did_you_mean, plural, similar_settings

Value = TypeVar("Value")

PRINTED_FAULTS = 12
NOT_STARTED = "Nothing was started."  # ends the advice of a request that is refused


class LorakitError(Exception):
    """The base class of all errors of this package.

    Args:
        message: one or two sentences: the request, and what was found.
        faults: every single fault, one line each; all are kept, the first 12 are printed.
        advice: what to do, and what was or was not changed.
    """

    exit_code = 2

    def __init__(self, message: str, faults: Iterable[str] = (), advice: str = ""):
        self.message = message
        self.faults = list(faults)
        self.advice = advice
        super().__init__(message, tuple(self.faults), advice)

    def __str__(self) -> str:
        lines = [self.message]
        lines += [f"  {fault}" for fault in self.faults[:PRINTED_FAULTS]]
        left = len(self.faults) - PRINTED_FAULTS
        if left > 0:
            lines.append(f"  … and {left} more (--json, or .faults, lists them all)")
        if self.advice:
            lines.append(self.advice)
        return "\n".join(lines)


class SpecError(LorakitError, ValueError):
    """A field of Spec or TrainSpec, an argument or a flag has a value that is not possible."""


class TargetError(LorakitError, LookupError):
    """A name or pattern selects nothing, or a layer that cannot be adapted."""


class AdapterNameError(LorakitError, LookupError):
    """The name of an adapter is already used, unknown, or not a valid name."""


class AdapterMismatch(LorakitError, ValueError):
    """An adapter does not fit the model."""


class AdapterFileError(LorakitError, ValueError):
    """An adapter folder is incomplete, damaged, or not understood."""


class MergeError(LorakitError, RuntimeError):
    """A merge would give other weights than base plus adapter, or cannot be done."""


class RowsError(LorakitError, RuntimeError):
    """The rows of a batch cannot be routed to different adapters."""


class ModelError(LorakitError, OSError):
    """A model cannot be found, read, or used for the task."""


class DataError(LorakitError, ValueError):
    """Rows of data cannot be used for training or evaluation."""


class OutputError(LorakitError, FileExistsError):
    """An output would be overwritten or cannot be made, or the run to resume does not exist."""


class MissingExtra(LorakitError, ImportError):
    """An optional library is not installed."""


class PlanError(LorakitError, RuntimeError):
    """A training step cannot be traced on shapes alone."""


def install_line(extra: str, *options: str) -> str:
    """Return the command that installs an extra: from the folder that lorakit was installed from.

    Args:
        extra: its name.
        *options: options of pip.
    """
    words = ["pip install", *options]
    folder = _source_folder()
    if folder is None:
        return " ".join([*words, f"'lorakit[{extra}]'"])
    return " ".join([*words, f"'.[{extra}]'", f"(in {folder})"])


def _source_folder() -> str | None:
    """Return the folder that lorakit was installed from; None if it came from an index."""
    # Imported here: they take longer than all else that `--help` needs.
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import unquote, urlsplit

    try:
        found = distribution("lorakit").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    source: dict[str, Any] = json.loads(found) if found else {}
    if "dir_info" not in source:
        return None
    url: str = source["url"]
    return unquote(urlsplit(url).path)


class TrainingError(LorakitError, RuntimeError):
    """A training run stopped before its end."""

    exit_code = 1


def refuse_unknown_names(cls: type[Value]) -> type[Value]:
    """Make a dataclass refuse arguments that are none of its fields with a SpecError.

    >>> from lorakit import Spec
    >>> Spec(lora_alpha=16)
    Traceback (most recent call last):
    lorakit.errors.SpecError: 1 unknown field of Spec.
      'lora_alpha' is no field of Spec; did you mean 'alpha'?
    Nothing was started.
    """
    known = [one.name for one in fields(cast(Any, cls))]
    original = cls.__init__

    @wraps(original)
    def checked(self: Value, *args: object, **values: object) -> None:
        faults = [f"{value!r}: give a name, as in {known[0]}=…" for value in args]
        for name in values:
            if name not in known:
                written = _as_arguments(similar_settings(name, known))
                fault = f"{name!r} is no field of {cls.__name__}"
                faults.append(add_hint(fault, did_you_mean(written)))
        if faults:
            count = plural(len(faults), "unknown field")
            raise SpecError(f"{count} of {cls.__name__}.", faults, NOT_STARTED)
        original(self, **values)

    setattr(cls, "__init__", checked)  # noqa: B010  a type checker sees the fields' own
    return cls


def _as_arguments(settings: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{name}={value!r}" if value else name for name, value in settings]
