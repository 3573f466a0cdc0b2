"""Signals that end a process, during a run: the current step is finished and saved first."""

import signal
from collections.abc import Callable, Iterable
from types import FrameType

from lorakit.errors import TrainingError

Handler = Callable[[int, FrameType | None], object] | int | None
HANGUP = signal.SIGHUP  # the terminal was closed


class Interrupted(TrainingError):
    """A run that stopped after Ctrl-C, SIGTERM or a closed terminal; a checkpoint was saved."""

    exit_code = 130


class Signals:
    """A context that notes the first Ctrl-C, SIGTERM or SIGHUP; a second one acts as usual.

    SIGHUP never acts as usual, because a closed terminal can send it twice. It is not noted where
    it is ignored, as `nohup` has it.
    """

    def __init__(self) -> None:
        self.stop_requested = False
        self.handlers: dict[int, Handler] = {}

    def __enter__(self) -> "Signals":
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(HANGUP) != signal.SIG_IGN:
            numbers.append(HANGUP)
        for number in numbers:
            try:
                self.handlers[number] = signal.signal(number, self._request_stop)
            except ValueError:
                # Only the main thread may set handlers; another thread stops a run in its own way.
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._restore(self.handlers)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True
        self._restore(self.handlers.keys() - {HANGUP})

    def _restore(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            signal.signal(number, self.handlers[number])
