"""The console that all output goes through: plain lines, where a class or folder called ``[red]`` is just text."""

from rich.console import Console


def make_console(*, quiet: bool = False, stderr: bool = False) -> Console:
    """A console without markup, without colours for numbers, and that never breaks a line, so that paths stay whole."""
    return Console(quiet=quiet, stderr=stderr, highlight=False, soft_wrap=True, markup=False)
