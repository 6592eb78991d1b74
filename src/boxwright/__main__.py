"""The command line: a verb, then the arguments of the function of that name.

A verb's module is imported only when it is called, so that help answers at once.
"""

import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

from boxwright import __version__
from boxwright.config import UserError, nearest

VERBS = {
    "demo": ("boxwright.bundled.demo", "detect blood cells with the bundled detector; --train trains it on the spot"),
    "check": ("boxwright.data.check", "read a data set and report every fault, with its mend"),
    "convert": ("boxwright.data.convert", "write a data set as COCO, YOLO or VOC"),
    "train": ("boxwright.training.run", "annotated images in, a trained detector out"),
    "evaluate": ("boxwright.evaluation.evaluate", "score a detector: COCO's twelve numbers, classes, curves"),
    "predict": ("boxwright.inference.predict", "find objects in images, folders or lists of them"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 1 for faults found, 2 for a mistake in the input, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
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
        result = _run(verb, arguments[1:])
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return getattr(result, "exit_code", 0)


def _overview() -> str:
    rows = "\n".join(f"  {verb:<9} {said}" for verb, (_, said) in VERBS.items())
    return (
        "boxwright: annotated images in, transformer object detectors out\n\n"
        f"usage: boxwright VERB [arguments]\n\n{rows}\n\n"
        "`boxwright VERB --help` tells a verb's arguments; `boxwright --version` the version.\n"
        "Start with `boxwright demo`."
    )


def _run(verb: str, arguments: list[str]) -> Any:
    function: Callable[..., Any] = getattr(import_module(VERBS[verb][0]), verb)
    from jsonargparse import ArgumentParser, auto_cli

    class Parser(ArgumentParser):
        """Says a mistake in one line, with the nearest right option."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UserError(f"{_one_line(message)}{_hint(message, self)} See `boxwright {verb} --help`.") from ex

    return auto_cli(function, args=arguments, prog=f"boxwright {verb}", parser_class=Parser)


def _one_line(message: str) -> str:
    return " ".join(message.split()).rstrip(".") + "."


def _hint(message: str, parser: Any) -> str:
    """The known option nearest to the unknown one that the message names."""
    known = [option.lstrip("-") for action in parser._actions for option in action.option_strings or [action.dest]]
    words = re.findall(r"--([\w.]+)|[Kk]ey [\"']([\w.]+)|option [\"']([\w.]+)", message)
    unknown = [word for match in words for word in match if word and word not in known]
    return nearest(unknown[0], known) if unknown else ""


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
