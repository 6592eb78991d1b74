"""Small data sets in shards."""

from pathlib import Path

from boxwright.data.read import read
from boxwright.data.shards.write import write_shards
from helpers import datasets


def sharded(folder: Path, images: int = 20, per_shard: int = 4) -> tuple[Path, Path]:
    """A COCO data set, and the same in shards of `per_shard` images or one more."""
    source = datasets.coco(folder / "coco", datasets.coco_content(images))
    write_shards(read(source), folder / "shards", per_shard * 3_600)
    return source, folder / "shards"
