"""Parts of a call of `predict`, for many processes: each is written whole or not at all, and is done once.

A part is a file of results, one line per image, and a manifest that is written after it and says what it belongs to.
The parts of a source begin with whole batches, so that all parts together compute exactly what one process would.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from boxwright.config import UserError, require
from boxwright.files import write_whole
from boxwright.runtime.coco import Records

FOLDER = "parts"
_FIX = "give another --out, or remove the folder to start again"


@dataclass(frozen=True)
class Part:
    """One of the equal parts of a source.

    Attributes:
        number: from 1.
        count: how many parts there are.
    """

    number: int
    count: int

    @staticmethod
    def parse(text: str) -> Part:
        """``3/64`` as a part; `UserError` for anything else."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        require(match, f"--part is a number and how many parts there are, as 3/64, not {text!r}.")
        assert match
        number, parts = int(match[1]), int(match[2])
        require(1 <= number <= parts, f"--part {text}: parts are counted from 1 to {parts or 'their number'}.")
        return Part(number, parts)

    def __str__(self) -> str:
        return f"{self.number} of {self.count}"

    @property
    def stem(self) -> str:
        """Of its files, in the order of the parts."""
        return f"{self.number:0{len(str(self.count))}}-of-{self.count}"

    def positions(self, images: int, batch_size: int) -> slice:
        """Which of so many images it holds; it may be none, if there are more parts than batches."""
        batches = -(-images // batch_size)
        first, end = ((number * batches // self.count) * batch_size for number in (self.number - 1, self.number))
        return slice(min(first, images), min(end, images))


@dataclass(frozen=True)
class Manifest:
    """What a part that is done says about itself.

    Attributes:
        number, count: the part.
        call: what all parts have in common: the weights, the source, and what was asked.
        names: the classes.
        images: how many were read.
        objects: how many were found, by class name.
        skipped: one message for each image that could not be read.
        sha256: of the results.
    """

    number: int
    count: int
    call: Mapping[str, Any]
    names: Sequence[str]
    images: int
    objects: Mapping[str, int]
    skipped: Sequence[str]
    sha256: str


def fingerprint(names: Iterable[str]) -> str:
    """Of a list of files, by their names."""
    checksum = hashlib.sha256()
    for name in names:
        checksum.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return checksum.hexdigest()[:16]


def done(out: Path, part: Part, call: Mapping[str, Any]) -> Manifest | None:
    """The manifest of a part that was done by an earlier call; None if it has to be done.

    Raises:
        UserError: if the folder has parts of another call.
    """
    folder = out / FOLDER
    own = folder / f"{part.stem}.json"
    there = next(iter(sorted(folder.glob("*-of-*.json"))), None)
    if there is None:
        return None
    known = _read(there)
    _require_same(known, part.count, call, folder)
    if not own.is_file():
        return None
    manifest = _read(own)
    _require_same(manifest, part.count, call, folder)
    return manifest if _is_whole(own, manifest) else None


def write_part(out: Path, part: Part, records: Iterable[Records]) -> str:
    """Write the results of a part, one image a line; their SHA-256."""
    checksum = hashlib.sha256()

    def fill(path: Path) -> None:
        with path.open("wb") as file:
            for record in records:
                line = json.dumps(record).encode() + b"\n"
                checksum.update(line)
                file.write(line)

    write_whole(out / FOLDER / f"{part.stem}.jsonl", fill)
    return checksum.hexdigest()


def write_manifest(out: Path, manifest: Manifest) -> None:
    """Say that a part is done."""
    stem = Part(manifest.number, manifest.count).stem
    text = json.dumps(asdict(manifest), indent=1)
    write_whole(out / FOLDER / f"{stem}.json", lambda path: path.write_text(text, encoding="utf-8"))


def read_manifests(out: Path) -> list[Manifest]:
    """Those of all parts, in order.

    Raises:
        UserError: if parts are missing, damaged, or of different calls.
    """
    folder = out / FOLDER
    files = sorted(folder.glob("*-of-*.json"))
    require(files, f"{out} has no parts; `boxwright predict WEIGHTS SOURCE --part 1/4 --out {out}` writes one.")
    manifests = [_read(file) for file in files]
    parts = manifests[0].count
    for manifest in manifests:
        _require_same(manifest, parts, manifests[0].call, folder)
    again = "give the same `predict` again with --part"
    missing = sorted(set(range(1, parts + 1)) - {manifest.number for manifest in manifests})
    if missing:
        raise UserError(f"{folder} lacks {_listed(missing)} of {parts} parts; {again} {missing[0]}/{parts}.")
    for file, manifest in zip(files, manifests, strict=True):
        whole = _is_whole(file, manifest)
        require(whole, f"{_results(file)} is damaged or gone; {again} {manifest.number}/{parts}.")
    return sorted(manifests, key=lambda manifest: manifest.number)


def read_records(out: Path, manifests: Iterable[Manifest]) -> Iterator[Records]:
    """The records of all parts, with the ids that one process would have given."""
    image_ids, ids = count(1), count(1)
    for manifest in manifests:
        with (out / FOLDER / f"{Part(manifest.number, manifest.count).stem}.jsonl").open("rb") as file:
            for line, image_id in zip(file, image_ids):  # noqa: B905 (image_ids never end)
                image, rows = json.loads(line)
                yield image | {"id": image_id}, [row | {"id": next(ids), "image_id": image_id} for row in rows]


def _read(file: Path) -> Manifest:
    try:
        manifest = Manifest(**json.loads(file.read_bytes()))
        Part.parse(f"{manifest.number}/{manifest.count}")
        return manifest
    except (ValueError, TypeError, UserError) as error:
        raise UserError(f"{file} is damaged; remove it, and give the same `predict` for this part again.") from error


def _require_same(manifest: Manifest, parts: int, call: Mapping[str, Any], folder: Path) -> None:
    """Check that a part belongs to this call."""
    then, now = {"parts": manifest.count, **manifest.call}, {"parts": parts, **call}
    other = [f"{name} {then.get(name)}, now {now.get(name)}" for name in now if then.get(name) != now.get(name)]
    require(not other, f"{folder} holds parts of another call ({'; '.join(other)}): {_FIX}.")


def _results(manifest: Path) -> Path:
    return manifest.with_suffix(".jsonl")


def _is_whole(file: Path, manifest: Manifest) -> bool:
    """Whether the results of a part are there as they were written."""
    try:
        with _results(file).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == manifest.sha256
    except FileNotFoundError:
        return False


def _listed(numbers: Sequence[int]) -> str:
    """The numbers in words, no more than ten."""
    shown = ", ".join(str(number) for number in numbers[:10])
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10} more"
