"""Files that are written whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path


def part_of(path: Path) -> Path:
    """Return the name under which a file or folder is made, beside its place.

    It holds the number of this process, so that two processes do not write one another's part.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; what is written there takes the place of `path` at the end.

    After an exception `path` is as it was, and nothing is left beside it.
    """
    with replace_files(path.parent, [path.name]) as parts:
        yield parts[path.name]


@contextmanager
def replace_files(folder: Path, names: Sequence[str]) -> Iterator[Mapping[str, Path]]:
    """Yield a path to write to for each of these files; all take their places at the end.

    Every file is complete and on the disk before the first takes its place. After an exception the
    folder is as it was.
    """
    parts = {name: part_of(folder / name) for name in names}
    with ExitStack() as stack:
        for part in parts.values():
            stack.callback(part.unlink, missing_ok=True)
        yield parts
        first = parts[names[0]]
        for part in parts.values():
            # Some writers let nobody but the owner read their file.
            shutil.copymode(first, part)
            sync(part)
        for name, part in parts.items():
            part.replace(folder / name)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; it takes the place of `path` at the end.

    The folder is yielded as a name alone: the block makes it. After an exception `path` is as it
    was, and nothing is left beside it.
    """
    part = part_of(path)
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield part
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replace_file(path) as part:
        part.write_text(text, "utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_json_lines(path: Path, values: Sequence[object]) -> None:
    """Write values as one line of JSON each, whole or not at all."""
    lines = [json.dumps(value) + "\n" for value in values]
    write_text(path, "".join(lines))
