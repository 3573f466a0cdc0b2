"""Faults at the n-th file operation: an error, an interrupt, or the end of the process."""

import builtins
import errno
import fcntl
import functools
import io
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lorakit import files

# Everything that writes, as the modules that lorakit calls look it up.
OPERATIONS: dict[str, list[Any]] = {
    "open": [builtins, io, os],
    "fsync": [os],
    "rename": [os],
    "replace": [os],
    "mkdir": [os],
    "unlink": [os],
    "rmdir": [os],
    "link": [os],
    "chmod": [os],
    "copyfile": [shutil],
    "flock": [fcntl],
    "_exchange": [files],
    "save": [torch],
    "serialize_file": [safetensors.torch],
}
WHOLE_FILES = ("save", "serialize_file")  # they write a file by code that is not Python

Moment = Callable[[Callable[[], Any]], Any]  # calls an operation or not, and raises


def full_disk(operation: Callable[[], Any]) -> Any:
    """Fail before the operation."""
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt_before(operation: Callable[[], Any]) -> Any:
    raise KeyboardInterrupt


def interrupt_after(operation: Callable[[], Any]) -> Any:
    result = operation()
    if isinstance(result, CountedFile):
        result.close()
    raise KeyboardInterrupt


def kill(operation: Callable[[], Any]) -> Any:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = (full_disk, interrupt_before, interrupt_after)


class Fault:
    """A fault at the n-th file operation in a folder.

    Args:
        folder: operations on other places are not counted.
        at: the number n, from 1.
        moment: what happens there.

    Attributes:
        name: the operation that failed; empty as long as there was none.
    """

    def __init__(self, folder: Path, at: int, moment: Moment):
        self.folder, self.left, self.moment = str(folder), at, moment
        self.name = ""

    def __enter__(self) -> "Fault":
        self.patch = pytest.MonkeyPatch()
        for name, modules in OPERATIONS.items():
            for module in modules:
                self.patch.setattr(module, name, self.count(name, getattr(module, name)))
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.undo()

    def count(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operation)
        def counted(*args: Any, **options: Any) -> Any:
            call = functools.partial(operation, *args, **options)
            if not self.concerns(name, args, options):
                return call()
            if name in WHOLE_FILES:
                return self.meet(name, call, lambda: _write_half(call, args))
            if name == "open" and operation is not OS_OPEN:
                return self.meet(name, lambda: CountedFile(call(), self))
            return self.meet(name, call)

        return counted

    def concerns(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
        """Return True for an operation that writes in the folder, or on something open."""
        mode = options.get("mode", args[1] if len(args) > 1 else "r")
        if name == "open" and isinstance(mode, str) and not set(mode) & set("wax+"):
            return False
        paths = [os.path.abspath(one) for one in args if isinstance(one, str | Path)]
        if name == "open" and paths and isinstance(mode, str):
            paths = paths[:1]
        return not paths or "dir_fd" in options or any(map(self.is_inside, paths))

    def is_inside(self, path: str) -> bool:
        return path == self.folder or path.startswith(self.folder + os.sep)

    def meet(
        self,
        name: str,
        operation: Callable[[], Any],
        half: Callable[[], Any] = lambda: None,
    ) -> Any:
        """Run an operation, or let the fault happen if it is the one.

        Args:
            name: of the operation.
            operation: what to run.
            half: what of it happens before the disk is full.
        """
        self.left -= 1
        if self.left:
            return operation()
        self.name = name
        if self.moment is not interrupt_after:
            half()
        return self.moment(operation)


OS_OPEN = os.open


def _write_half(call: Callable[[], Any], args: tuple[Any, ...]) -> None:
    call()
    (path,) = (one for one in args if isinstance(one, str | Path))
    os.truncate(path, Path(path).stat().st_size // 2)


class CountedFile:
    """A file that was opened to write, whose writes are counted."""

    def __init__(self, file: Any, fault: Fault):
        self.file, self.fault = file, fault

    def write(self, content: Any) -> Any:
        write = self.file.write
        return self.fault.meet("write", lambda: write(content), lambda: write(content[::2]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "CountedFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def run_and_die(operation: Callable[[], object], fault: Fault) -> bool:
    """Run an operation in a process that dies at the fault; return False if there was none."""
    child = os.fork()
    if not child:
        try:
            with fault:
                operation()
        finally:
            os._exit(0 if not fault.name else 1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False
