"""The images that a call of `predict` is about: files, images in shards, or files behind a URL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from boxwright.config import require
from boxwright.data.shards import records as shards
from boxwright.data.shards.index import is_sharded
from boxwright.data.shards.storage import RemoteFolder
from boxwright.files import PackedFile, as_location
from boxwright.images import IMAGE_SUFFIXES
from boxwright.runtime.sources import collect, short_names

ImageFile: TypeAlias = Path | PackedFile


def source_images(source: Path | str, out: Path) -> dict[ImageFile, str]:
    """The images of a source, in sorted order, and the short name of each.

    Args:
        source: what `boxwright.runtime.sources.collect` takes; shards in a folder or at a URL, in their own order; or
            the URL of an image or of a folder of images, of any kind that fsspec knows.
        out: a folder whose images are left out: an earlier call may have written overlays there.

    Raises:
        UserError: if there is no image, or the URL cannot be read.
    """
    place = as_location(source)
    if is_sharded(place):
        return dict(_in_shards(place))
    if isinstance(place, str):
        return dict(_at_url(place))
    folder = out.resolve()
    kept = [path for path in collect(source) if folder not in path.resolve().parents]
    require(kept, f"all images of {source} lie in {out}, where the results go; give another --out.")
    return dict(zip(kept, short_names(kept), strict=True))


def _in_shards(place: Path | str) -> Iterator[tuple[PackedFile, str]]:
    """The images of all splits; where two have the same name, each gets its split before it."""
    files = [
        (split, file)
        for split, records in shards.read(place).splits.items()
        if isinstance(records, shards.ShardRecords)
        for file in records.files()
    ]
    unique = len({file.path for _, file in files}) == len(files)
    return ((file, file.path if unique else f"{split}/{file.path}") for split, file in files)


class _RemoteImages:
    """Files behind a URL, as an archive."""

    checksum = ""

    def __init__(self, folder: RemoteFolder, names: list[str]):
        self.folder, self.names = folder, names

    def read_member(self, number: int) -> bytes:
        """The bytes of a file."""
        return self.folder.read(self.names[number])


def _at_url(url: str) -> Iterator[tuple[PackedFile, str]]:
    folder = RemoteFolder(url)
    names = folder.names()
    if names == [""]:  # a file
        parent, _, name = folder.place.rpartition("/")
        folder, names = RemoteFolder(parent), [name]
    names = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    endings = " ".join(sorted(IMAGE_SUFFIXES))
    require(names, f"no image found at {url} (subfolders included); images end in {endings}.")
    archive = _RemoteImages(folder, names)
    for number, name in enumerate(names):
        yield PackedFile(archive, number, f"{folder.place}/{name}", name), name
