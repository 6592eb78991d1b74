"""Ctrl-C and SIGTERM, between two steps."""

import signal
from threading import current_thread, main_thread
from types import FrameType


class Interrupt:
    """Notes Ctrl-C and SIGTERM, so that the loop can stop between two steps; a second one ends the process at once.

    Signals reach only the main thread; in another one nothing changes.

    Attributes:
        requested: whether one came.
    """

    requested = False
    number: int = signal.SIGINT

    def __enter__(self) -> "Interrupt":
        signals = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()
        self.before = {number: signal.signal(number, self._request) for number in signals}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested, self.number = True, number
        self.__exit__()

    def error(self) -> KeyboardInterrupt:
        """What ends the run; of SIGTERM with an argument, from which the command line makes its exit code."""
        return KeyboardInterrupt("SIGTERM") if self.number == signal.SIGTERM else KeyboardInterrupt()

    def __exit__(self, *ignored: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
