"""Shards and URLs are sources as folders are."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from boxwright.config import UserError
from boxwright.data.shards.write import shard
from boxwright.inference.predict import predict
from boxwright.inference.source_images import source_images

SIZE, BOX = (64, 48), (10, 10, 40, 30)


@pytest.fixture
def data(paint: Callable[..., Path], tmp_path: Path) -> Path:
    """A COCO data set with two splits; `1.png` is in both."""
    root = tmp_path / "data"
    for split, count in (("train", 3), ("val", 2)):
        images = []
        for n in range(1, count + 1):
            paint(root / split / f"{n}.png", SIZE, BOX if n % 2 else None)
            images.append({"id": n, "file_name": f"{n}.png", "width": SIZE[0], "height": SIZE[1]})
        row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0}
        content = {"images": images, "annotations": [row], "categories": [{"id": 1, "name": "box"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def found(out: Path) -> dict[str, list[list[float]]]:
    """Boxes by file name."""
    content = json.loads((out / "predictions.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    boxes: dict[str, list[list[float]]] = {name: [] for name in names.values()}
    for row in content["annotations"]:
        boxes[names[row["image_id"]]].append(row["bbox"])
    return boxes


def test_shards_and_urls_give_what_the_folder_gives(data, weights, tmp_path):
    shard(data, tmp_path / "shards")
    out = tmp_path / "out"
    predict(weights, data, out / "folder")
    predict(weights, tmp_path / "shards", out / "shards")
    predict(weights, f"file://{tmp_path / 'shards'}", out / "url")
    predict(weights, f"file://{data}", out / "images")
    assert len(found(out / "folder")) == 5
    assert all(found(out / name) == found(out / "folder") for name in ("shards", "url", "images"))
    assert (out / "shards" / "overlays" / "val" / "1.png").read_bytes() == (
        out / "folder" / "overlays" / "val" / "1.png"
    ).read_bytes()


def test_one_image_behind_a_url(data, weights, tmp_path):
    predict(weights, f"file://{data / 'train' / '1.png'}", tmp_path / "out")
    assert list(found(tmp_path / "out")) == ["1.png"]


def test_parts_of_shards(data, weights, tmp_path):
    shard(data, tmp_path / "shards")
    images = [
        predict(weights, tmp_path / "shards", tmp_path / "out", batch_size=1, part=f"{n}/2").images for n in (1, 2)
    ]
    assert images == [2, 3]


def test_an_image_that_is_damaged_in_its_shard_stops_no_other(data, weights, tmp_path):
    shard(data, tmp_path / "shards")
    tar = next(iter(sorted((tmp_path / "shards").glob("train*.tar"))))
    content = bytearray(tar.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 1
    tar.write_bytes(content)
    summary = predict(weights, tmp_path / "shards", tmp_path / "out")
    assert (summary.images, len(summary.skipped)) == (4, 1)
    assert "train-00000.tar is damaged" in str(summary.skipped[0])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("file:///nowhere/at/all", "file:///nowhere/at/all"),
        ("file:///proc/sys/kernel", "no image found at"),
        ("nosuch://bucket/photos", "nosuch://bucket/photos"),
    ],
)
def test_a_url_without_images(tmp_path, source, message):
    with pytest.raises(UserError, match=message):
        source_images(source, tmp_path)
