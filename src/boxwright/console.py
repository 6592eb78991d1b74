"""The console that all output goes through: plain lines, where a class or folder called ``[red]`` is just text.

A program that sets a level or a handler of the logger ``boxwright``, or ends its propagation, gets all of it there.
"""

import io
import logging
from typing import Any

from rich.console import Console

LOGGER = "boxwright"


def make_console(*, quiet: bool = False, stderr: bool = False) -> Console:
    """A console without markup, without colours for numbers, and that never breaks a line, so that paths stay whole."""
    return _Console(quiet=quiet, stderr=stderr, highlight=False, soft_wrap=True, markup=False)


class _Console(Console):
    """Writes into the logger instead, once a program has configured it."""

    def print(self, *objects: Any, style: Any = None, **options: Any) -> None:
        """Print, or log: what is for stderr, or in yellow, as a warning."""
        if not _is_configured():
            super().print(*map(self._escaped, objects), style=style, **options)
        elif not self.quiet:
            text = io.StringIO()
            plain = Console(file=text, width=160, highlight=False, soft_wrap=True, markup=False, no_color=True)
            plain.print(*objects, **options)
            level = logging.WARNING if self.stderr or style == "yellow" else logging.INFO
            logging.getLogger(LOGGER).log(level, "%s", text.getvalue().rstrip("\n"))

    def _escaped(self, thing: Any) -> Any:
        """A text with escapes for what its file can't be written with, such as bytes of a name that are no UTF-8."""
        if not isinstance(thing, str):
            return thing
        encoding = getattr(self.file, "encoding", None) or "utf-8"
        return thing.encode(encoding, "backslashreplace").decode(encoding)

    @property
    def is_terminal(self) -> bool:
        """Whether progress bars can be drawn."""
        return super().is_terminal and not _is_configured()


def _is_configured() -> bool:
    logger = logging.getLogger(LOGGER)
    return bool(logger.handlers or logger.level or logger.disabled or not logger.propagate)
