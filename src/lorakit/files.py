"""Atomic writing: a file has its old or its new content; a folder is moved when it is complete.

The new content is written under a temporary name in the same folder. A process that is killed
leaves its temporary files; the next writer of the same file removes them.
"""

import glob
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

import psutil

from lorakit.errors import OutputError

PART = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d{1,9})\.part")  # names that `part_path` gives


def part_path(path: Path) -> Path:
    """Return the temporary path, in the same folder, under which the new content is written.

    It contains the number of this process, so that two processes have two temporary paths.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove the temporary files and folders of processes that have ended, and of this one.

    Those of other living processes stay. Processes of other machines count as ended.

    Args:
        folder: the folder that the content is written to.
        pattern: glob pattern of the names that the content gets.
    """
    for part in folder.glob(".*.part"):
        found = PART.fullmatch(part.name)
        if found is None or not fnmatchcase(found["name"], pattern):
            continue
        pid = int(found["pid"])
        if pid == os.getpid() or not psutil.pid_exists(pid):
            _remove(part)


def _remove(path: Path) -> None:
    """Remove a file or folder if this user may."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


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
    for name in names:
        remove_leftovers(folder, glob.escape(name))
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
    remove_leftovers(path.parent, glob.escape(path.name))
    part = part_path(path)
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
