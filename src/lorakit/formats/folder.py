"""Adapter folders: the format is found by looking at the files. `Adapter.load` and `save` use it."""

from pathlib import Path

from lorakit.errors import AdapterFileError
from lorakit.formats import loralib
from lorakit.formats.parts import AdapterParts
from lorakit.formats.peft import reader
from lorakit.formats.peft.writer import write

__all__ = ["read", "write"]


def read(folder: str | Path) -> AdapterParts:
    """Read an adapter folder, as `lorakit.formats.peft.reader.read` does.

    Raises:
        AdapterFileError: also for a file in loralib's layout, which needs another reader.
    """
    if loralib.sniff(folder):
        raise AdapterFileError(
            f"{folder} is a file of loralib, which does not hold alpha.",
            advice="Adapter(*lorakit.formats.loralib.read(path, alpha=...)) reads it. "
            "Nothing was loaded.",
        )
    return reader.read(folder)
