"""Mutate annotation files of every format: does `read` or `check` ever end in a traceback, hang, or take a GB?

    python benchmarks/fuzz_data.py --cases 5000

For each reader, a small data set is made, and one of its annotation files is changed: bytes, or a value inside its
structure (a node of JSON, a word of text), or the whole file, or what it is (a FIFO, a device, a link to itself). Each
case goes through `read` and `check`. A case is `read`, `refused` (a `UserError` of one line), or one of the failures
`crash` (any other exception), `slow` (over 10 s of CPU time), `large` (over 1 GB), `control` (a control character is
printed, or in a class name) and `hang` (no answer in two minutes). The exit code is 1 after a failure.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import re
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from boxwright.classes import is_printable
from boxwright.config import UserError
from boxwright.data.read import read
from boxwright.inspection.check import check

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers import datasets as samples
from helpers.foreign_datasets import ONE_CLASS, TWO_CLASSES
from helpers.mutations import mutate

READERS: list[Callable[[Path], Any]] = [samples.coco, samples.voc, samples.yolo, *TWO_CLASSES, *ONE_CLASS]
MOST_SECONDS, MOST_BYTES, PATIENCE = 10.0, 2**30, 120.0
FAILURES = ("crash", "slow", "large", "control", "hang")
_DEEP: Any = []
for _ in range(500):
    _DEEP = [_DEEP]
VALUES: list[Any] = [
    None, True, [], {}, "", " ", 0, -1, 0.5, 10**400, 10**18, 1e308, float("inf"), float("nan"), "1e400", "9" * 5000,
    "x" * 300, "\ud800", "a\0b", "a\x1b[2Jb", "a\nb", "=1+1", "../../../etc/passwd", "/dev/zero", "C:\\a.jpg", _DEEP,
    [[]], [1, 2], {"a": 1}, "NaN", "\u202eabc", "%00", "a.jpg", "b.jpg",
]  # fmt: skip
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)
WHOLE = [
    b"", b"[" * 100_000, b"{" * 100_000, b'{"a":' * 100_000, b"<a>" * 100_000, b"- " * 100_000, b"9" * 5000,
    b'{"images": ' + b"9" * 5000 + b"}", b"[1e999, 1" + b"0" * 400 + b"]", b"\0" * 5000, b"\xff\xfe" * 500,
    _BOMB.encode(), (_BOMB + "names: *j\ntrain: images/train\n").encode(), b"names: " + b"[" * 100_000, b"\n" * 100_000,
    b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]><a>&c;</a>',
    b"names: [\"\\uD800\", \"a\\x1bb\"]\ntrain: images/train\nval: images/val\n", b"a" * 1_000_000, b"x,y\n" * 10_000,
]  # fmt: skip
NODES = ("fifo", "zero", "full", "itself", "folder", "nothing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000, help="for each reader, beside the fixed ones")
    parser.add_argument("--readers", nargs="*", help="by default all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total: Counter[str] = Counter()
    for make in READERS:
        if not options.readers or make.__name__ in options.readers:
            counts, slowest, messages = run_reader(make, options.cases, options.seed)
            total += counts
            listed = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
            print(f"{make.__name__}: {listed}; slowest {slowest:.2f} s of CPU time", flush=True)
            for message in messages:
                print(f"  {message}", flush=True)
    print(f"{sum(total.values())} cases: " + ", ".join(f"{n} {name}" for name, n in sorted(total.items())))
    sys.exit(int(any(total[name] for name in FAILURES)))


def run_reader(make: Callable[[Path], Any], cases: int, seed: int) -> tuple[Counter[str], float, list[str]]:
    """Outcomes, the longest CPU time in seconds, and what failed. A process that hangs is ended, another goes on."""
    counts: Counter[str] = Counter()
    slowest, messages, first = 0.0, [], 0
    done = False
    while not done:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=_child, args=(theirs, make, cases, seed, first))
        process.start()
        theirs.close()
        while True:
            try:
                answered = ours.poll(PATIENCE)
                outcome, name, seconds, detail = ours.recv() if answered else ("hang", f"case {first}", 0.0, "")
            except EOFError:  # killed, as by the system for its memory
                outcome, name, seconds, detail = "crash", f"case {first}", 0.0, "the process ended"
                answered = False
            if outcome == "done":
                done = True
                break
            first += 1
            counts[outcome] += 1
            slowest = max(slowest, seconds)
            if outcome in FAILURES and len(messages) < 20:
                messages.append(f"{outcome}: {name} {detail}")
            if not answered:
                break
        process.kill()
        process.join()
    return counts, slowest, messages


def _child(out: Connection, make: Callable[[Path], Any], cases: int, seed: int, first: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, hard))
    with TemporaryDirectory() as folder:
        os.environ["BOXWRIGHT_CACHE"] = f"{folder}/cache"
        root = Path(folder) / "data"
        make(root)
        originals = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for i, (name, change) in enumerate(all_cases(root, make.__name__, cases, seed)):
            if i < first:
                continue
            file = change()
            out.send(outcome_of(root, name))
            restore(root / file, originals[file])
    out.send(("done", "", 0.0, ""))


def all_cases(root: Path, reader: str, cases: int, seed: int) -> Iterator[tuple[str, Callable[[], Path]]]:
    """Name of each case, and what makes it: a function that changes a file and returns its path below `root`."""
    everything = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    files = [path for path in everything if path.suffix.lower() not in (".jpg", ".png")]
    for file in dict.fromkeys([*files[:2], *files[-1:], *everything[:1]]):
        for kind in NODES:
            yield f"{file} is {kind}", lambda file=file, kind=kind: _become(root, file, kind)
    for file in dict.fromkeys([*files[:2], *files[-1:]]):
        for i, content in enumerate(WHOLE):
            yield f"{file} holds content {i}", lambda file=file, content=content: _write(root, file, content)
    for i in range(cases):
        draw = random.Random(f"{reader} {seed} {i}")
        file = draw.choice(files)
        content = mutate_structure((root / file).read_bytes(), file, draw) if i % 2 else None
        content = mutate((root / file).read_bytes(), draw) if content is None else content
        yield f"seed '{reader} {seed} {i}'", lambda file=file, content=content: _write(root, file, content)


def mutate_structure(content: bytes, file: Path, draw: random.Random) -> bytes | None:
    """Another value in one to three places of a text; of JSON, of its tree. None if it has none."""
    try:
        text = content.decode("utf-8")
        lines = text.splitlines() if file.suffix in (".jsonl", ".odgt") else [text]
        place = draw.randrange(len(lines)) if lines else 0
        tree = json.loads(lines[place]) if file.suffix in (".json", ".jsonl", ".odgt") else None
    except ValueError:
        return None
    if tree is None:
        return _mutate_words(text, draw)
    for _ in range(draw.choice([1, 1, 2, 3])):
        tree = _mutate_node(tree, draw)
    try:
        lines[place] = json.dumps(tree, ensure_ascii=draw.random() < 0.5)
    except (ValueError, RecursionError):
        return None
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _mutate_node(tree: Any, draw: random.Random) -> Any:
    """The tree with another value, without one, or with one twice."""
    nodes = [node for node in _containers(tree) if node]
    if not nodes:
        return draw.choice(VALUES)
    node = draw.choice(nodes)
    key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
    action = draw.random()
    if action < 0.15:
        del node[key]
    elif action < 0.25 and isinstance(node, list):
        node.append(node[key])
    elif action < 0.35 and isinstance(node, dict):
        node[str(draw.choice(VALUES))[:400]] = node.pop(key)
    else:
        node[key] = draw.choice(VALUES)
    return tree


def _containers(tree: Any, depth: int = 0) -> Iterator[Any]:
    if isinstance(tree, (dict, list)) and depth < 40:
        yield tree
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from _containers(child, depth + 1)


def _mutate_words(text: str, draw: random.Random) -> bytes:
    for _ in range(draw.choice([1, 1, 2, 3])):
        words = list(re.finditer(r"[\w.+-]+", text))
        if words:
            word = draw.choice(words)
            text = text[: word.start()] + str(draw.choice(VALUES)) + text[word.end() :]
    return text.encode("utf-8", "surrogatepass")


def _write(root: Path, file: Path, content: bytes) -> Path:
    (root / file).write_bytes(content)
    return file


def _become(root: Path, file: Path, kind: str) -> Path:
    (root / file).unlink()
    if kind == "fifo":
        os.mkfifo(root / file)
    elif kind == "folder":
        (root / file).mkdir()
    elif kind != "nothing":
        (root / file).symlink_to({"zero": "/dev/zero", "full": "/dev/full", "itself": file.name}[kind])
    return file


def restore(path: Path, content: bytes) -> None:
    """The file as it was before its case."""
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(content)


def outcome_of(root: Path, name: str) -> tuple[str, str, float, str]:
    """What became of a case, its name, CPU time in seconds, and the details of a failure."""
    begin, outcome, detail = time.process_time(), "read", ""
    for function in (read, check):
        try:
            with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()):
                result = function(root)
            names = result.names if hasattr(result, "names") else ()
            if not all(map(is_printable, names)) or "\x1b" in printed.getvalue():
                outcome, detail = "control", repr(names)[:200]
        except UserError as error:
            outcome = "refused" if outcome == "read" else outcome
            if "\n" in str(error) or "\x1b" in str(error):
                outcome, detail = "crash", f"not one clean line: {str(error)[:200]!r}"
        except MemoryError:
            outcome = "large"
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(frame.filename).name}:{frame.lineno}"
            outcome, detail = "crash", f"{function.__name__}: {type(error).__name__} {str(error)[:100]!r} at {place}"
    seconds = time.process_time() - begin
    return (outcome if seconds <= MOST_SECONDS else "slow"), name, seconds, detail


if __name__ == "__main__":
    main()
