"""Shards hold the data set, in WebDataset's layout, and are written whole or not at all."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxwright.__main__ import main
from boxwright.config import UserError
from boxwright.data.convert import convert
from boxwright.data.read import parse, read, train_and_val
from boxwright.data.shards.index import read_index
from boxwright.data.shards.write import shard
from boxwright.data.split import split
from boxwright.inspection.check import check
from helpers import datasets
from helpers.sharded import sharded


def test_records_are_those_of_the_source(tmp_path):
    source, shards = sharded(tmp_path)
    before, after = read(source), read(shards)
    assert (after.names, after.category_ids, after.format) == (before.names, before.category_ids, "shards")
    assert len(read_index(shards).splits["all"].shards) > 3
    for one, other in zip(before.splits["all"], after.splits["all"], strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()
        assert (one.path.name, one.image_id) == (other.path.name, other.image_id)
        assert (one.width, one.height) == (other.width, other.height)
        for name in ("boxes_N4", "labels_N", "ignore_N"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_the_layout_is_that_of_webdataset(tmp_path):
    source, shards = sharded(tmp_path, images=5, per_shard=2)
    names = []
    for file in sorted(shards.glob("all-*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                names.append(member.name)
                content = tar.extractfile(member).read()
                if member.name == "000000000.json":
                    annotation = json.loads(content)
                if member.name == "000000003.jpg":
                    assert content == (source / "images" / "004.jpg").read_bytes()
    assert names == [f"{n:09d}.{ending}" for n in range(5) for ending in ("jpg", "json")]
    assert annotation == {
        "file_name": "images/001.jpg",
        "image_id": 1,
        "width": 40,
        "height": 30,
        "boxes": [[4, 5, 14.5, 17], [20, 10, 28, 18]],
        "labels": ["cat", "dog"],
        "ignore": [False, False],
    }


def test_the_same_data_give_the_same_bytes(tmp_path):
    source, _ = sharded(tmp_path)
    for size in ("1MB", "1000000"):
        shard(source, tmp_path / size, size)
    files = [file.relative_to(tmp_path / "1MB") for file in (tmp_path / "1MB").rglob("*") if file.is_file()]
    assert len(files) == 10
    assert all((tmp_path / "1MB" / file).read_bytes() == (tmp_path / "1000000" / file).read_bytes() for file in files)


def test_check_and_convert_take_them(tmp_path, capsys):
    source, shards = sharded(tmp_path)
    one, other = check(source), check(shards)
    assert one.splits == other.splits
    assert one.classes == other.classes
    assert other.count("error") == 0
    convert(shards, tmp_path / "yolo", "yolo")
    assert read(tmp_path / "yolo").splits["all"][0].boxes_N4.shape == (2, 4)
    shard(shards, tmp_path / "again", "1MB")
    again, first = (parse(place).splits["all"][3] for place in (tmp_path / "again", shards))
    assert (again.path.path, again.boxes, again.marks) == (first.path.path, first.boxes, first.marks)


def test_a_split_for_validation_is_that_of_the_source(tmp_path):
    source, shards = sharded(tmp_path)
    one, other = (train_and_val(read(data), 0.2, seed=3) for data in (source, shards))
    assert [[record.image_id for record in part] for part in one] == [[r.image_id for r in part] for part in other]


def test_many_images_are_split_at_random(tmp_path, monkeypatch):
    monkeypatch.setattr("boxwright.data.split.AT_RANDOM", 10)
    records = read(sharded(tmp_path)[1]).splits["all"]
    train, val = split(records, 0.25, seed=1)
    assert (len(train), len(val)) == (15, 5)
    assert sorted([*train.positions, *val.positions]) == list(range(20))
    assert val.label_counts().tolist() == [5, int(0 in val.positions)][: len(val.label_counts())]


def test_objects_without_area_are_left_out_and_counted(tmp_path, capsys):
    content = datasets.coco_content(2)
    content["annotations"][1]["bbox"] = [50, 50, 3, 3]
    shard(datasets.coco(tmp_path / "set", content), tmp_path / "out")
    assert "1 objects have no box inside an image" in capsys.readouterr().err
    assert [len(record.boxes_N4) for record in read(tmp_path / "out").splits["all"]] == [2, 0]


def nothing_left(folder: Path) -> bool:
    return sorted(file.name for file in folder.iterdir()) == ["set"]


def test_an_image_that_is_cut_off_is_named_and_nothing_is_written(tmp_path):
    source = datasets.coco(tmp_path / "set")
    image = source / "images" / "002.jpg"
    image.write_bytes(image.read_bytes()[:600])
    with pytest.raises(UserError, match=r"002.jpg: cannot be read as an image: .*; `boxwright check .*` lists"):
        shard(source, tmp_path / "out")
    assert nothing_left(tmp_path)


def test_an_image_of_another_shape_is_named(tmp_path):
    source = datasets.coco(tmp_path / "set")
    Image.new("RGB", (30, 40)).save(source / "images" / "002.jpg")
    with pytest.raises(UserError, match=r"002.jpg has the shape of 30 x 40, its annotation 40 x 30 .*check"):
        shard(source, tmp_path / "out")
    assert nothing_left(tmp_path)


def test_a_place_that_is_taken_is_left_alone(tmp_path):
    source, shards = sharded(tmp_path)
    before = sorted(shards.iterdir())
    with pytest.raises(UserError, match="exists and is not empty"):
        shard(source, shards)
    assert sorted(shards.iterdir()) == before


@pytest.mark.parametrize("size", ["", "big", "-1MB", "256", "1 EB"])
def test_sizes_that_are_none(tmp_path, size):
    with pytest.raises(UserError, match="--size must be"):
        shard(datasets.coco(tmp_path / "set"), tmp_path / "out", size)


def test_the_command(tmp_path, capsys):
    source = datasets.coco(tmp_path / "set")
    assert main(["shard", str(source), str(tmp_path / "out")]) == 0
    assert "3 images (all 3) in 1 shards, 2 classes" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "out")]) == 0


# Damage


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-700])


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0" * 10)


def change(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("all-00001.tar", cut, "all-00001.tar is cut off: it has .* bytes, and the index counts .*; copy it again"),
        ("all-00001.tar", grow, "all-00001.tar belongs to another data set: it has .*; copy it again"),
        ("all-00001.tar", Path.unlink, "all-00001.tar is missing; copy it again"),
        ("index/all/boxes.npy", cut, "boxes.npy is cut off, or belongs to another data set; copy it again"),
        ("index/all/boxes.npy", change, "boxes.npy is cut off, or belongs to another data set; copy it again"),
        ("index/all/text.npy", Path.unlink, "text.npy is missing; copy it again"),
        ("shards.json", cut, "shards.json is no index of shards, or is cut off; copy it again"),
        ("shards.json", change, "shards.json (is damaged: it has another checksum|is no index)"),
    ],
)
@pytest.mark.parametrize("verb", [read, check])
def test_what_is_damaged_is_named(tmp_path, name, damage, message, verb):
    _, shards = sharded(tmp_path)
    damage(shards / name)
    with pytest.raises(UserError, match=message):
        verb(shards)


def test_an_index_of_another_data_set(tmp_path):
    _, shards = sharded(tmp_path / "a")
    _, other = sharded(tmp_path / "b", images=12)
    (shards / "shards.json").write_bytes((other / "shards.json").read_bytes())
    with pytest.raises(UserError, match="belongs to another data set"):
        read(shards)


def test_a_bit_that_fell_over_in_an_image_is_found_when_it_is_read(tmp_path):
    _, shards = sharded(tmp_path)
    records = read(shards).splits["all"]
    first = int(records.archive.index.columns["places"].rows(0, 1)[0, 0])
    data = bytearray((shards / "all-00000.tar").read_bytes())
    data[first + 100] ^= 1
    (shards / "all-00000.tar").write_bytes(data)
    with pytest.raises(
        UserError, match=r"all-00000.tar is damaged, or belongs to another data set: its bytes from 512"
    ):
        records[0].path.read_bytes()
    assert records[1].path.read_bytes()
    report = check(shards)
    assert [fault.kind for fault in report.faults if fault.level == "error"] == ["undecodable-image"]


def test_a_newer_format(tmp_path):
    _, shards = sharded(tmp_path)
    text = (shards / "shards.json").read_text()
    (shards / "shards.json").write_text(text.replace("boxwright-shards-1", "boxwright-shards-9"))
    with pytest.raises(UserError, match="'boxwright-shards-9', and this version reads boxwright-shards-1; update"):
        read(shards)
