"""Atomic writing (new content in full, or the old), and folders that are written to."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lorakit.errors import OutputError


def part_path(path: Path) -> Path:
    """Return the temporary path, in the same folder, under which the new content is written.

    It contains the number of this process, so that two processes have two temporary paths.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and move the file to `path` after the block.

    After an exception in the block `path` is unchanged and the temporary file is removed.
    """
    with replace_files(path.parent, [path.name]) as parts:
        yield parts[path.name]


@contextmanager
def replace_files(folder: Path, names: Sequence[str]) -> Iterator[Mapping[str, Path]]:
    """Yield a temporary path for each name, and move all files to their names after the block.

    All files are complete and on the disk before the first one is moved. After an exception in the
    block the folder is unchanged and the temporary files are removed.
    """
    parts = {name: part_path(folder / name) for name in names}
    with ExitStack() as stack:
        for part in parts.values():
            stack.callback(part.unlink, missing_ok=True)
        yield parts
        first = parts[names[0]]
        for part in parts.values():
            # safetensors creates files that only the owner can read.
            shutil.copymode(first, part)
            sync(part)
        for name, part in parts.items():
            part.replace(folder / name)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a folder, and move the folder to `path` after the block.

    The block creates the folder. After an exception in the block `path` is unchanged and the
    temporary folder is removed.
    """
    part = part_path(path)
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield part
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replace_file(path) as part:
        part.write_text(text, "utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_json_lines(path: Path, values: Sequence[object]) -> None:
    """Write one line of JSON for each value, atomically."""
    lines = [json.dumps(value) + "\n" for value in values]
    write_text(path, "".join(lines))


def check_new_folder(path: Path, what: str, unchanged: str) -> None:
    """Check that a folder can be written to: it must not exist, or be empty.

    Args:
        path: the folder.
        what: the thing that will be written there, with its article: "an adapter".
        unchanged: a sentence for the message, such as "Nothing was written."

    Raises:
        OutputError: the path is a file, or a folder that is not empty.
    """
    fault = ""
    if path.is_dir():
        fault = "is not empty" if any(path.iterdir()) else ""
    elif path.exists():
        fault = f"is a file; {what} is a folder"
    if fault:
        raise OutputError(f"{path} {fault}.", advice=f"Name a new folder. {unchanged}")


def folder_bytes(path: Path) -> int:
    """Return the size of the files of a folder, without those in folders inside it."""
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
