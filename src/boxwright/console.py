"""The one way of speaking to the user: plain lines, in which a class or a folder called ``[red]`` is just text."""

from rich.console import Console


def make_console(*, quiet: bool = False, stderr: bool = False) -> Console:
    """A console that takes no text for markup, colours no numbers and never breaks a line, so that paths stay whole."""
    return Console(quiet=quiet, stderr=stderr, highlight=False, soft_wrap=True, markup=False)
