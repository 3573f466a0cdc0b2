"""Limits on the time and memory of code that comes with a file, such as a chat template."""

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

SECONDS = 2.0  # of processor time
BYTES = 1 << 30
AGAIN = 0.1  # seconds until the signal comes again, where an exception was lost


class TimeExceeded(BaseException):
    """The block has taken more processor time than it may.

    It is no Exception: jinja catches every Exception while it computes the constants of a template.
    """


@contextmanager
def limited(seconds: float = SECONDS, size: int = BYTES) -> Iterator[None]:
    """Limit the processor time and the additional memory of the block.

    Outside the main thread only the memory is limited, because Python gives it all signals.

    Args:
        seconds: processor time of this process, its time in the system included.
        size: bytes beside those that the process has already.

    Raises:
        TimeExceeded: in the block, when its time is over.
        MemoryError: in the block, by what asks for too much memory.
    """
    with _limited_memory(size):
        if threading.current_thread() is threading.main_thread():
            with _limited_time(seconds):
                yield
        else:
            yield


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    handler = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TimeExceeded


@contextmanager
def _limited_memory(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + size
    if soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    with suppress(ValueError, OSError):  # Not every system has this limit.
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
