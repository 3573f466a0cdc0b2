"""Adapter folders, for `Adapter.load` and `Adapter.save`: the format is that of the files found."""

from pathlib import Path

from lorakit.errors import AdapterFileError
from lorakit.formats import loralib
from lorakit.formats.parts import AdapterParts
from lorakit.formats.peft import reader
from lorakit.formats.peft.writer import write

__all__ = ["read", "write"]


def read(folder: str | Path, *, unchecked: bool = False) -> AdapterParts:
    """Read an adapter folder, as `lorakit.formats.peft.reader.read` does.

    Args:
        folder: the folder.
        unchecked: True to read files of lorakit that were changed after they were written.

    Raises:
        AdapterFileError: also for a file in loralib's layout, which needs another reader.
    """
    folder = reader.check_path(folder)
    if loralib.is_loralib_file(folder):
        raise AdapterFileError(
            f"{folder} is a file of loralib, which does not hold alpha.",
            advice="Adapter(*lorakit.formats.loralib.read(path, alpha=...)) reads it. "
            "Nothing was loaded.",
        )
    return reader.read(folder, unchecked=unchecked)
