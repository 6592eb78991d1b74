"""The command line: a verb, then the arguments of the function of that name.

A verb's module is imported only when it is called, so that help answers at once.
"""

import inspect
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import islice, zip_longest
from threading import current_thread, main_thread
from typing import Any, NoReturn

from boxwright import __version__
from boxwright.config import UserError, nearest
from boxwright.extras import chief, how_to_install

VERBS = {
    "demo": ("boxwright.bundled.demo", "detect blood cells with the bundled detector; --train trains it on the spot"),
    "check": ("boxwright.data.check", "read a data set and report every fault, with its mend"),
    "convert": ("boxwright.data.convert", "write a data set as COCO, YOLO or VOC"),
    "train": ("boxwright.training.run", "annotated images in, a trained detector out"),
    "distill": ("boxwright.training.distill", "a large detector teaches a small one"),
    "compare": ("boxwright.comparison.compare", "train all detectors on equal terms, and see which to take"),
    "evaluate": ("boxwright.evaluation.evaluate", "score a detector: COCO's twelve numbers, classes, curves"),
    "predict": ("boxwright.inference.predict", "find objects in images, folders or lists of them"),
    "models": ("boxwright.bundled.catalogue", "which detectors there are, how good, how fast, under which licence"),
    "import-weights": ("boxwright.interop.import_weights", "convert a published checkpoint of another project"),
    "explain": ("boxwright.inference.explain", "show how a detector came to what it says, and where it looked"),
    "export": ("boxwright.deployment.export", "write a detector as one file that runs without torch, proven equal"),
    "serve": ("boxwright.deployment.serve", "answer over HTTP, with a page to try a detector in the browser"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit code.

    0, or 1 for faults found, 2 for a mistake in the input, 130 for Ctrl-C, 143 for SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a class or file name that the terminal cannot show
    try:
        try:
            return _called(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _called(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(_overview())
        return 0
    if verb == "--version":
        print(f"boxwright {__version__}")
        return 0
    if verb not in VERBS:
        return _fail(f"there is no verb {verb!r}{nearest(verb, VERBS)}; `boxwright --help` lists them.")
    try:
        with warnings.catch_warnings(), _ended_cleanly():
            warnings.showwarning = _warn
            result = _run(verb, arguments[1:])
    except UserError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        return _fail(how_to_install(f"`boxwright {verb}`", chief(error.name)))
    except KeyboardInterrupt as stop:
        return 128 + (signal.SIGTERM if stop.args else signal.SIGINT)
    except BrokenPipeError:
        raise
    except OSError as error:  # a file system that refuses is the user's to mend, wherever it shows itself
        return _fail(f"{error.filename or verb}: {error.strerror or error}.")
    return getattr(result, "exit_code", 0)


@contextmanager
def _ended_cleanly() -> Iterator[None]:
    """SIGTERM ends a verb as Ctrl-C does, so that what is half-written is removed."""
    own = os.getpid()

    def end(*_: Any) -> None:
        if os.getpid() != own:  # a worker, which has nothing to remove
            os._exit(128 + signal.SIGTERM)
        raise KeyboardInterrupt("SIGTERM")

    if current_thread() is not main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the code that it comes from."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _overview() -> str:
    rows = "\n".join(f"  {verb:<15} {said}" for verb, (_, said) in VERBS.items())
    return (
        "boxwright: annotated images in, transformer object detectors out\n\n"
        f"usage: boxwright VERB [arguments]\n\n{rows}\n\n"
        "`boxwright VERB --help` tells a verb's arguments; `boxwright --version` the version.\n"
        "Start with `boxwright demo`."
    )


def _run(verb: str, arguments: list[str]) -> Any:
    function: Callable[..., Any] = getattr(import_module(VERBS[verb][0]), verb.replace("-", "_"))
    from jsonargparse import ArgumentParser, auto_cli

    class Parser(ArgumentParser):
        """Says a mistake in one line, with the nearest right option."""

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs | {"allow_abbrev": False})

        def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().parse_path(cfg_path, *args, **kwargs)
            except UnicodeDecodeError as error:
                self.error(f"{cfg_path} is not text in UTF-8", error)

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UserError(f"{_one_line(message)}{_hint(message, self)} See `boxwright {verb} --help`.") from ex

    return auto_cli(
        function, args=_config_first(_spelt(arguments, function)), prog=f"boxwright {verb}", parser_class=Parser
    )


def _spelt(arguments: list[str], function: Callable[..., Any]) -> list[str]:
    """The arguments as the parser wants them: underscores in names, and a bare switch said to be true."""
    switches = {
        f"--{p.name}" for p in inspect.signature(function).parameters.values() if p.annotation in (bool, "bool")
    }
    spelt = []
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            if name in switches and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
        spelt.append(name + equals + value)
    return spelt


def _config_first(arguments: list[str]) -> list[str]:
    """Settings of files before all others: the parser keeps the last, and what the command line says itself counts."""
    files, others, words = [], [], iter(arguments)
    for word in words:
        if word == "--config":
            files += [word, *islice(words, 1)]
        else:
            (files if word.startswith("--config=") else others).append(word)
    return files + others


def _one_line(message: str) -> str:
    """The parser's message without its layout; of a value that fits no type: option, value and what fits."""
    said = " ".join(message.split()).rstrip(".")
    union = re.search(
        r'^Parser key "(.+?)": Does not validate .* Subtypes: \[(.*)\] Errors: .* Given value: (.*)$', said
    )
    plain = re.search(r'^Parser key "(.+?)": Expected a (.+)[.] Got value: (.*)$', said)
    if misfit := union or plain:
        name, kind, value = misfit.groups()
        words = re.findall(r"'(\w[\w-]*)'", "".join(re.findall(r"Literal\[(.*?)\]", kind)))
        others = re.sub(r"(typing\.)?Literal\[.*?\],? ?|<class '(\w+)'>", r"\2", kind).replace("NoneType", "null")
        fitting = {"int": "a whole number", "float": "a number"}.get(others) if not words else None
        fitting = fitting or f"one of: {', '.join([*words, others] if others not in ('', 'null') else words)}"
        said = f"--{name} can't be {value!r}{nearest(value, words)}, it must be {fitting}"
    return f"{said}."


def _hint(message: str, parser: Any) -> str:
    """The known option nearest to the unknown one that the message names; of what goes by its place, the places."""
    places = [action.dest for action in parser._actions if not action.option_strings]
    if misplaced := next((name for name in re.findall(r"--([\w.]+)", message) if name in places), None):
        return f" {misplaced.upper()} goes by its place, without a name: {parser.prog} {' '.join(places).upper()}."
    options = [option.lstrip("-") for action in parser._actions for option in action.option_strings or [action.dest]]
    known = [*options, *(option.split(".")[-1] for option in options)]
    unknown = [a or b for a, b in re.findall(r"--([\w.]+)|[Oo]ption '([\w.]+)'", message) if (a or b) not in known]
    return nearest(unknown[0], known) if unknown else ""


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
