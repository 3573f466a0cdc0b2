"""Ctrl-C and SIGTERM during a run: the current step is finished and saved first."""

import signal
from collections.abc import Callable
from types import FrameType

from lorakit.errors import TrainingError

Handler = Callable[[int, FrameType | None], object] | int | None


class Interrupted(TrainingError):
    """A run that stopped after Ctrl-C or SIGTERM; a checkpoint was saved."""

    exit_code = 130


class Signals:
    """A context that notes the first Ctrl-C or SIGTERM; a second one acts as usual."""

    def __init__(self) -> None:
        self.stop_requested = False
        self.handlers: dict[int, Handler] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.handlers[number] = signal.signal(number, self._request_stop)
            except ValueError:
                # Only the main thread may set handlers; another thread stops a run in its own way.
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True
        self.__exit__()
