"""Atomic writing: a file has its old or its new content; a folder is moved when it is complete.

The new content is written under a temporary name in the same folder. A process that is killed
leaves its temporary files; the next writer of the same file removes them.
"""

import errno
import fcntl
import glob
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from lorakit.errors import NOT_STARTED, OutputError

# Names that `part_path` gives.
PART = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d{1,9})(-\d+)?\.part")
TRIAL = "lorakit"  # name of the folder by which is seen whether something can be written
LOCK_ATTEMPTS = 100
LOCK_PAUSE = 0.05  # seconds between two attempts
# The C function that exchanges two paths: its name, the arguments around the first path, the flag.
EXCHANGES = {
    "linux": ("renameat2", (-100,), (-100,), 2),  # AT_FDCWD, RENAME_EXCHANGE
    "darwin": ("renamex_np", (), (), 2),  # RENAME_SWAP
}
_counter = itertools.count()
_held_folders: set[tuple[int, int]] = set()  # of this process: device and inode
_parts_in_use: set[Path] = set()  # of this process


def part_path(path: Path) -> Path:
    """Return a temporary path, in the same folder, under which new content is written.

    No other call gives the same path: it contains the numbers of this process and of the call.
    """
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_counter)}.part")


@contextmanager
def _use_parts(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Yield a temporary path for each path, and remove what is there after the block."""
    parts = [part_path(path) for path in paths]
    with ExitStack() as cleanup:
        # In a stack, because Ctrl-C may come while a part is removed.
        cleanup.callback(_parts_in_use.difference_update, parts)
        for part in parts:
            cleanup.callback(_remove, part)
        _parts_in_use.update(parts)
        yield parts


def list_parts(path: Path) -> list[Path]:
    """Return the temporary paths of a path that exist, those of other processes included."""
    found = path.parent.glob(f".{glob.escape(path.name)}.*.part")
    return [part for part in found if PART.fullmatch(part.name)]


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove the temporary files and folders that no living process is writing.

    Processes of other machines count as ended.

    Args:
        folder: the folder that the content is written to.
        pattern: glob pattern of the names that the content gets.
    """
    for part in folder.glob(".*.part"):
        found = PART.fullmatch(part.name)
        if found and fnmatchcase(found["name"], pattern) and is_leftover(part):
            _remove(part)


def is_leftover(path: Path) -> bool:
    """Return True for a temporary file or folder that no living process is writing."""
    found = PART.fullmatch(path.name)
    if found is None:
        return False
    pid = int(found["pid"])
    if pid == os.getpid():
        return path not in _parts_in_use
    import psutil  # here, because `--help` needs none of it

    return not psutil.pid_exists(pid)


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

    All files are complete and on the disk before the first one is moved. After an exception the
    folder is unchanged and the temporary files are removed. The last name is moved first. If the
    process is killed between two moves, the new file of the first name is complete under its
    temporary name; it is removed when another writer has replaced all files.
    """
    for name in names[1:]:
        remove_leftovers(folder, glob.escape(name))
    targets = [folder / name for name in names]
    with _use_parts(targets) as parts:
        yield dict(zip(names, parts, strict=True))
        for part in parts:
            # safetensors creates files that only the owner can read.
            shutil.copymode(parts[0], part)
            sync(part)
        with lock_folder(folder):
            _move_files(parts[::-1], targets[::-1])
    remove_leftovers(folder, glob.escape(names[0]))


def _move_files(files: Sequence[Path], targets: Sequence[Path]) -> None:
    """Move files to their targets; after an exception all targets are as they were."""
    with _use_parts(targets) as backups, ExitStack() as undo:
        for file, target, backup in zip(files, targets, backups, strict=True):
            if target.exists():
                _link(target, backup)
                undo.callback(backup.replace, target)
            else:
                undo.callback(target.unlink, missing_ok=True)
            file.replace(target)
        undo.pop_all()


def _link(path: Path, second_path: Path) -> None:
    """Give a file a second name, or copy it where the file system has no such names."""
    try:
        second_path.hardlink_to(path)
    except OSError:
        shutil.copy2(path, second_path)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Let no other writer move files in a folder during the block.

    Moves take milliseconds, so a lock that stays for seconds is that of `hold_folder`: writers of
    the process that holds the folder need no second lock, and those of others go on without one.
    On a file system without locks nothing is locked.
    """
    with _open_folder(folder) as descriptor:
        for _ in range(LOCK_ATTEMPTS):
            if _identity(descriptor) in _held_folders or _try_lock(descriptor):
                break
            time.sleep(LOCK_PAUSE)
        yield


@contextmanager
def hold_folder(folder: Path) -> Iterator[bool]:
    """Hold a folder during the block, and yield False if another process or thread holds it.

    The lock is on the folder itself, so that it leaves no file and ends with the process. On a file
    system without locks everybody may hold it.
    """
    with _open_folder(folder) as descriptor:
        identity = _identity(descriptor)
        is_free = identity not in _held_folders and _try_lock(descriptor)
        if is_free:
            _held_folders.add(identity)
        try:
            yield is_free
        finally:
            if is_free:
                _held_folders.discard(identity)


@contextmanager
def _open_folder(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _try_lock(descriptor: int) -> bool:
    """Lock an open folder, and return False if somebody else has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a folder, and move the folder to `path` after the block.

    The block creates the folder, and it is on the disk before it is moved. After an exception
    `path` is unchanged and the temporary folder is removed. A process that is killed leaves the old
    folder or the new one, except on a file system that cannot exchange two folders in one step.
    """
    remove_leftovers(path.parent, glob.escape(path.name))
    with _use_parts([path, path]) as (part, old):
        yield part
        sync_folder(part)
        with lock_folder(path.parent):
            if not path.exists():
                part.rename(path)
            elif not _exchange(part, path):
                _move_in_two_steps(part, path, old)
        sync_entries(path.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return False where the system cannot."""
    import ctypes  # here, because `--help` needs none of it

    if sys.platform not in EXCHANGES:
        return False
    function, before, between, flag = EXCHANGES[sys.platform]
    try:
        exchange = getattr(ctypes.CDLL(None), function)
    except AttributeError:  # an older system
        return False
    failed = exchange(*before, os.fsencode(first), *between, os.fsencode(second), flag)
    return not failed


def _move_in_two_steps(part: Path, path: Path, old: Path) -> None:
    """Move a folder to the path of another one, which is moved to a third path."""
    path.rename(old)
    try:
        part.rename(path)
    except BaseException:
        old.rename(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replace_file(path) as part:
        part.write_text(text, "utf-8")


def copy_file(source: Path, path: Path) -> None:
    """Copy a file, atomically."""
    with replace_file(path) as part:
        shutil.copyfile(source, part)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_json_lines(path: Path, values: Sequence[object]) -> None:
    """Write one line of JSON for each value, atomically."""
    lines = [json.dumps(value) + "\n" for value in values]
    write_text(path, "".join(lines))


def check_new_folder(path: Path, what: str, unchanged: str) -> None:
    """Check that a folder can be written to: it must not exist, or be empty.

    What a killed process has left in it does not count.

    Args:
        path: the folder.
        what: the thing that will be written there, with its article: "an adapter".
        unchanged: a sentence for the message, such as "Nothing was written."

    Raises:
        OutputError: the path is a file, or a folder that is not empty.
    """
    fault = ""
    if path.is_dir():
        is_empty = all(is_leftover(entry) for entry in path.iterdir())
        fault = "" if is_empty else "is not empty"
    elif path.exists():
        fault = f"is a file; {what} is a folder"
    if fault:
        raise OutputError(f"{path} {fault}.", advice=f"Name a new folder. {unchanged}")


def check_new_file(path: Path) -> None:
    """Refuse a file that exists already or cannot be made.

    Raises:
        OutputError: it says which.
    """
    if path.exists():
        raise OutputError(f"{path} exists already.", advice="Name a new file. Nothing was written.")
    check_can_be_made(path)


def check_can_be_made(path: Path) -> None:
    """Check that a file or folder could be written at a path; missing folders before it are made.

    A temporary folder is made and removed, because permissions alone do not tell.

    Raises:
        OutputError: a file or a link to nothing is in the way, the name is not possible, or nothing
            can be written there.
    """
    try:
        fault = _obstacle(path)
    except (OSError, ValueError) as error:
        fault = _reason(error)
    if fault:
        raise OutputError(f"{path} cannot be made: {fault}.", advice=NOT_STARTED)


def _obstacle(path: Path) -> str:
    """Return why nothing can be written at a path, or an empty text; other reasons are raised."""
    absolute = path.absolute()
    places = [absolute, *absolute.parents]
    missing = list(itertools.takewhile(lambda place: not place.exists(), places))
    for place in missing:
        if place.is_symlink():
            return f"{place} is a link to a place that does not exist"
    existing = places[len(missing)]
    if path.exists() and not path.is_dir():
        existing = existing.parent
    if not existing.is_dir():
        return f"{existing} is a file"
    names = {place.name for place in missing}
    if path.name:
        names.add(part_path(path).name)
    try:
        for place in (existing, absolute.parent):
            remove_leftovers(place, TRIAL)
        with _use_parts([existing / TRIAL]) as (folder,):
            folder.mkdir()
            for name in names:
                (folder / name).mkdir()
    except OSError as error:
        return f"nothing can be written in {existing}: {_reason(error)}"
    return ""


def _reason(error: OSError | ValueError) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return reason[:1].lower() + reason[1:] if reason else type(error).__name__


def leaves_folder(path: Path, folder: Path) -> bool:
    """Return True if a path is outside of a folder when all links are followed.

    A snapshot in the cache of the hub links to files beside it: the whole repository counts there.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        root = root.parent.parent
    return not path.resolve().is_relative_to(root)


def folder_bytes(path: Path) -> int:
    """Return the size of the files of a folder, without those in folders inside it."""
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


@contextmanager
def create_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a new folder, and move the folder to `path` after the block.

    The block creates the folder. It is on the disk before it gets its name, and it replaces nothing
    but an empty folder: of two processes with one path the second one fails. After an exception
    `path` is unchanged and the temporary folder is removed.

    Raises:
        OutputError: the folder has got files in the meantime.
    """
    path = path.resolve()
    remove_leftovers(path.parent, glob.escape(path.name))
    with _use_parts([path]) as (part,):
        yield part
        sync_folder(part)
        try:
            part.rename(path)  # it fails if the folder is there and not empty
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise OutputError(
                f"{path} has got files since the beginning.",
                advice="They are kept. Name a new folder. Nothing was written.",
            ) from error
        sync_entries(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until all files of a folder are on the disk, and the folder itself."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_entries(path)
        else:
            sync(path)
    sync_entries(folder)


def sync_entries(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
