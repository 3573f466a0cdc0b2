"""Adapters on disk, one file a family. `read` and `write` are what Adapter.load and Adapter.save
call.
"""

from pathlib import Path
from typing import Any

from lorakit.errors import AdapterFileError
from lorakit.formats import loralib
from lorakit.formats.peft import files as peft
from lorakit.formats.peft.files import write

__all__ = ["read", "write"]


def read(folder: str | Path) -> Any:
    """Return what `peft.read` does; a file of another family is refused with the way to read it."""
    if loralib.sniff(folder):
        raise AdapterFileError(
            f"{folder} is of loralib, whose files do not hold alpha.",
            advice="Adapter(*lorakit.formats.loralib.read(path, alpha=...)) reads it. "
            "Nothing was loaded.",
        )
    return peft.read(folder)
