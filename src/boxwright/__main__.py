"""The command line: a verb, then the arguments of the function of that name.

A verb's module is imported only when the verb runs, so that help answers at once.
"""

import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import current_thread, main_thread
from typing import Any, TextIO

from boxwright import __version__
from boxwright.config import UserError, nearest
from boxwright.extras import how_to_install, root_missing

VERBS = {
    "demo": ("boxwright.bundled.demo", "detect blood cells with the bundled detector; --train trains it first"),
    "check": (
        "boxwright.inspection.check",
        "find every error in a data set and how to fix it; --out draws a page",
    ),
    "convert": ("boxwright.data.convert", "convert a data set to another format: COCO, YOLO, VOC, CVAT, ..."),
    "shard": ("boxwright.data.shards.write", "write a data set as tar shards, to train from any place and by many"),
    "train": ("boxwright.training.run", "train a detector on annotated images"),
    "distill": ("boxwright.training.distill", "train a small detector with a large one as its teacher"),
    "compare": ("boxwright.comparison.compare", "train all detectors under equal conditions, and recommend one"),
    "evaluate": ("boxwright.evaluation.evaluate", "evaluate a detector: COCO's twelve numbers, AP per class, curves"),
    "predict": ("boxwright.inference.predict", "detect objects in images, folders, lists or videos"),
    "merge-results": (
        "boxwright.inference.merge_results",
        "join the parts of `predict --part` to one data set and one table",
    ),
    "models": ("boxwright.bundled.catalogue", "list the detectors: sizes, accuracy, speed, licences"),
    "import-weights": ("boxwright.interop.import_weights", "convert a published checkpoint of another project"),
    "explain": ("boxwright.explanation.explain", "show why a detector predicts its boxes, by attention and tokens"),
    "export": ("boxwright.deployment.export", "write a detector as one ONNX file that needs no torch"),
    "push": ("boxwright.deployment.push", "upload a detector and its model card to the Hugging Face hub"),
    "doctor": ("boxwright.installation.doctor", "show versions, devices, disk, and how to mend what is wrong"),
    "cache": ("boxwright.installation.cache", "list what decoded images take on disk; --clear removes it"),
    "serve": ("boxwright.deployment.serve", "detect over HTTP, with a page to try a detector in the browser"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit code.

    0, or 1 for faults found, 2 for a mistake in the input, 130 for Ctrl-C, 143 for SIGTERM.
    """
    with _escaped(sys.stdout), _escaped(sys.stderr):
        try:
            try:
                return _dispatch(sys.argv[1:] if arguments is None else arguments)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:  # the reader of a pipe closed it, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


@contextmanager
def _escaped(stream: TextIO) -> Iterator[None]:
    """Write characters that the terminal cannot show, as in a class or file name, as escapes such as `\\xe9`."""
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors=before)


def _dispatch(arguments: list[str]) -> int:
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
        return _fail(how_to_install(f"`boxwright {verb}`", root_missing(error.name)))
    except KeyboardInterrupt as stop:
        return 128 + (signal.SIGTERM if stop.args else signal.SIGINT)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk or a missing permission, which the user can fix
        return _fail(f"{error.filename or verb}: {error.strerror or error}.")
    return getattr(result, "exit_code", 0)


@contextmanager
def _ended_cleanly() -> Iterator[None]:
    """Let SIGTERM end a verb as Ctrl-C does, so that half-written files are removed."""
    main_process = os.getpid()

    def end(*_: Any) -> None:
        if os.getpid() != main_process:  # a forked worker, which has nothing to remove
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
    """Print a warning as one line, without its place in the code."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _overview() -> str:
    rows = "\n".join(f"  {verb:<15} {summary}" for verb, (_, summary) in VERBS.items())
    return (
        "boxwright: annotated images in, transformer object detectors out\n\n"
        f"usage: boxwright VERB [arguments]\n\n{rows}\n\n"
        "`boxwright VERB --help` lists a verb's arguments; `boxwright --version` the version.\n"
        "Start with `boxwright demo`."
    )


def _run(verb: str, arguments: list[str]) -> Any:
    function = getattr(import_module(VERBS[verb][0]), verb.replace("-", "_"))
    from boxwright.command_line import call

    return call(function, verb, arguments)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
