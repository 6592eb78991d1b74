"""What a call of `predict` did, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from boxwright.config import UserError
from boxwright.inference.parts import Manifest


@dataclass
class Summary:
    """What a call of `predict` did.

    Attributes:
        folder: where the results are.
        images: how many images were read.
        objects: how many objects were found, by class name.
        skipped: one error for each image that could not be read, or for a video that ends before its time.
    """

    folder: Path
    images: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    skipped: list[UserError] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path, parts: Iterable[Manifest]) -> Summary:
        """That of parts which are done."""
        summary = cls(folder)
        for manifest in parts:
            summary.images += manifest.images
            summary.objects.update(manifest.objects)
            summary.skipped += [UserError(message) for message in manifest.skipped]
        return summary

    @property
    def exit_code(self) -> int:
        """1 if an image, or the end of a video, could not be read."""
        return int(bool(self.skipped))


def files(summary: Summary, parquet: bool, overlays: bool = False, labels: bool = False) -> str:
    """The names of all files and folders of results."""
    folders = [name for name, there in (("overlays", overlays), ("labels", labels)) if there and summary.images]
    drawn = "".join(f"{summary.folder / name}, " for name in folders)
    tables = ", predictions.csv and predictions.parquet" if parquet else " and predictions.csv"
    return f"{drawn}{summary.folder / 'predictions.json'}{tables}"


def report(console: Console, summary: Summary, written: str, video: bool = False) -> None:
    """Print what was found, what was written, and what could not be read."""
    counts = ", ".join(f"{name} {count}" for name, count in summary.objects.most_common())
    objects, images = _count_of(summary.objects.total(), "object"), _count_of(summary.images, "image")
    console.print(f"{objects} in {images}{': ' + counts if counts else ''}")
    console.print(f"written: {written}")
    if summary.skipped:
        total = _count_of(summary.images + len(summary.skipped), "image")
        unread = f"{len(summary.skipped)} of {total} could not be read"
        console.print(f"{'the video could not be read to its end' if video else unread}:")
        for error in summary.skipped:
            console.print(f"  {error}")


def _count_of(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
