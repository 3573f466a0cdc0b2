"""Text for people: plurals, near misses, bytes, durations, dtypes, and messages on stderr."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from difflib import get_close_matches
from typing import Any, TextIO


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, which takes an s unless the count is 1.

    >>> plural(1, "layer"), plural(1200, "row")
    ('1 layer', '1,200 rows')
    """
    ending = "" if count == 1 else "s"
    return f"{count:,} {noun}{ending}"


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return the most similar known words, the best first; empty if none is similar.

    >>> nearest("k_porj", ["q_proj", "k_proj"], count=1)
    ['k_proj']
    """
    return get_close_matches(word, sorted(set(known)), n=count, cutoff=0.6)


def near_misses(word: str, known: Iterable[str], count: int = 3) -> str:
    """Return `did you mean …?` with the most similar known words, or an empty string.

    >>> near_misses("k_porj", ["q_proj", "k_proj"], count=1)
    "did you mean 'k_proj'?"
    """
    return did_you_mean(nearest(word, known, count))


def did_you_mean(words: Iterable[str]) -> str:
    """Return `did you mean …?` with these words, or an empty string if there are none.

    >>> did_you_mean(["k_proj", "q_proj"])
    "did you mean 'k_proj' or 'q_proj'?"
    """
    names = " or ".join(repr(name) for name in words)
    return f"did you mean {names}?" if names else ""


def format_bytes(count: float) -> str:
    """Return a number of bytes with its unit.

    >>> format_bytes(1572864), format_bytes(3 << 40)
    ('1.5 MiB', '3,072.0 GiB')
    """
    if count < 1024:
        return f"{count} B"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:,.1f} GiB"


def format_duration(seconds: float) -> str:
    """Return a duration with its unit.

    >>> format_duration(0.25), format_duration(90), format_duration(600), format_duration(36000)
    ('250 ms', '90.0 s', '10 min', '10.0 h')
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def dtype_name(dtype: object) -> str:
    """Return the name of a torch dtype as specs and files write it.

    >>> import torch
    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that is not blank, or the name of its class.

    >>> first_line(ValueError("\\n  no such model\\nTraceback ..."))
    'no such model'
    """
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()
    return type(error).__name__


class LastingStream:
    """A text stream whose reader may go away: what is written after that is dropped.

    Args:
        stream: the stream to write to; None drops everything, as for a closed stderr.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        if self.stream is not None:
            try:
                self.stream.write(text)
            except (OSError, ValueError):
                self.stream = None
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        if self.stream is not None:
            try:
                self.stream.flush()
            except (OSError, ValueError):
                self.stream = None

    def isatty(self) -> bool:
        """Return True for a terminal."""
        return self.stream is not None and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  as the stream has it
        return getattr(self.stream, name)


@contextmanager
def lasting_stderr() -> Iterator[None]:
    """Keep the block alive when nobody reads stderr any more.

    A pipe to `head`, a closed terminal or a full disk under a log must not end a long run.
    """
    with redirect_stderr(LastingStream(sys.stderr)):  # type: ignore[type-var]
        yield
