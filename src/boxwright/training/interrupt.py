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

    def __enter__(self) -> "Interrupt":
        signals = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()
        self.before = {number: signal.signal(number, self._request) for number in signals}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.__exit__()

    def __exit__(self, *ignored: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
