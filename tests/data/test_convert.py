"""Round trips among the formats, and a target that is never left half-written."""

import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from boxwright.config import UserError
from boxwright.data import convert as convert_module
from boxwright.data.convert import convert
from boxwright.data.parsed import to_dataset
from boxwright.data.read import parse
from boxwright.inspection.check import check
from helpers import datasets as samples

FORMATS = ("coco", "yolo", "voc")
FOREIGN = ("cvat", "label-studio", "huggingface")
NAMES = st.lists(
    st.sampled_from(
        ["cat", "no", "null", "1", "1.0", "Ünïcode 猫", "a: b", "<&>'\"", "# hash", "two  spaces", "~", "Cat"]
    ),
    min_size=1,
    max_size=4,
    unique=True,
)
SPLITS = st.sampled_from([("all",), ("train",), ("train", "val"), ("train", "test"), ("train", "minival", "test")])
COORDINATES = st.one_of(st.integers(-3, 40), st.floats(-3, 40, allow_subnormal=False))


@st.composite
def contents(draw):
    """COCO files by split: objects of every shape, background images, the same file names in two splits."""
    names = draw(NAMES)
    categories = [{"id": 3 * i + 1, "name": name} for i, name in enumerate(names)]
    files = {}
    for split in draw(SPLITS):
        images, annotations = [], []
        for k in range(draw(st.integers(1, 3))):
            width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
            images.append({"id": k * 7, "file_name": f"{k} x.png", "width": width, "height": height})
            for box in draw(st.lists(st.tuples(*[COORDINATES] * 4), max_size=3)):
                category, crowd = draw(st.sampled_from(categories))["id"], int(draw(st.booleans()))
                row = {
                    "id": len(annotations),
                    "image_id": k * 7,
                    "category_id": category,
                    "bbox": box,
                    "iscrowd": crowd,
                }
                annotations.append(row)
        files[split] = {"images": images, "annotations": annotations, "categories": categories}
    return files


def write_files(root, files):
    """The COCO files, with their images."""
    for split, content in files.items():
        folder = root / ("images" if split == "all" else split)
        for row in content["images"]:
            samples.image(folder / row["file_name"], row["width"], row["height"])
        file = root / ("annotations.json" if split == "all" else f"annotations/instances_{split}.json")
        samples.write_json(file, content)


def load(path):
    """Every finite box, as `convert` reads."""
    return to_dataset(parse(path), empty_boxes=True)[0]


def pixels(record):
    return record.path.read_bytes()


def assert_same(a, b, tolerance, ignore=True):
    """The same classes, splits, images and objects; images are matched by content."""
    assert a.names == b.names
    assert list(a.splits) == list(b.splits)
    for split in a.splits:
        original, converted = sorted(a.splits[split], key=pixels), sorted(b.splits[split], key=pixels)
        assert list(map(pixels, original)) == list(map(pixels, converted))
        for x, y in zip(original, converted, strict=True):
            assert (x.width, x.height) == (y.width, y.height)
            np.testing.assert_allclose(y.boxes_N4, x.boxes_N4, rtol=0, atol=tolerance)
            np.testing.assert_array_equal(y.labels_N, x.labels_N)
            np.testing.assert_array_equal(y.ignore_N, x.ignore_N if ignore else np.zeros(len(x.labels_N), bool))


@pytest.mark.parametrize(("first", "second"), list(product(FORMATS, FORMATS)))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=contents())
def test_round_trip(first, second, files):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_files(root / "start", files)
        start = load(root / "start")
        convert(root / "start", root / "first", first)
        convert(root / "first", root / "second", second)
        tolerance = 1e-6 if "yolo" in (first, second) else 1e-12
        assert_same(start, load(root / "first"), 1e-6 if first == "yolo" else 1e-12, ignore=first != "yolo")
        assert_same(start, load(root / "second"), tolerance, ignore="yolo" not in (first, second))


@pytest.mark.parametrize("to", FOREIGN)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=contents())
def test_foreign_formats_round_trip(to, files):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_files(root / "start", files)
        convert(root / "start", root / "out", to)
        assert_same(load(root / "start"), load(root / "out"), 1e-12, ignore=to != "label-studio")


def test_voc_and_coco_keep_numbers_exactly(tmp_path):
    root = samples.voc(tmp_path / "start", {"train": ["a"], "val": ["b"]})
    samples.xml(
        root / "Annotations" / "a.xml", samples.thing(box=(1, 2, 30, 4)) + samples.thing(box=(0.1, 0.25, 33.3, 7))
    )
    convert(root, tmp_path / "voc", "voc")
    convert(root, tmp_path / "coco", "coco")
    exact = load(tmp_path / "voc").splits["train"][0].boxes_N4.tolist()
    assert exact == [[1, 2, 30, 4], [0.1, 0.25, 33.3, 7]]
    assert "<xmin>1</xmin>" in (tmp_path / "voc" / "Annotations" / "a.xml").read_text()
    np.testing.assert_allclose(load(tmp_path / "coco").splits["train"][0].boxes_N4, exact, rtol=0, atol=1e-14)


def test_coco_ids_survive(tmp_path):
    start, out = samples.coco(tmp_path / "start"), tmp_path / "out"
    convert(start, out, "coco")
    assert load(out).category_ids == (3, 7)
    assert [r.image_id for r in load(out).splits["all"]] == [1, 2, 3]


@pytest.mark.parametrize("to", [*FORMATS, *FOREIGN])
def test_result_has_no_fault(tmp_path, to):
    convert(samples.yolo(tmp_path / "start"), tmp_path / "out", to)
    assert check(tmp_path / "out").faults == []


@pytest.mark.parametrize("to", [*FORMATS, *FOREIGN])
def test_images_of_one_name_stay_apart(tmp_path, to):
    content = samples.coco_content(3)
    for row, name in zip(content["images"], ("a/1.png", "b/1.png", "b/1.jpg"), strict=True):
        row["file_name"] = name
    start = samples.coco(tmp_path / "start", content)
    convert(start, tmp_path / "out", to)
    assert_same(load(start), load(tmp_path / "out"), 1e-6)


def test_yolo_says_how_many_ignore_flags_are_lost(tmp_path, capsys):
    content = samples.coco_content()
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["bbox"] = [float("nan"), 1, 1, 1]
    convert(samples.coco(tmp_path / "start", content), tmp_path / "out", "yolo")
    printed = capsys.readouterr()
    assert "1 such objects" in printed.err
    assert "1 objects have no finite box" in printed.err
    assert "3 images (all 3), 3 boxes, 2 classes" in printed.out


def test_yolo_file_is_plain(tmp_path):
    convert(samples.voc(tmp_path / "start"), tmp_path / "out", "yolo")
    text = (tmp_path / "out" / "data.yaml").read_text()
    assert text == "train: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"
    rows = (tmp_path / "out" / "labels" / "val" / "c.txt").read_text().splitlines()
    assert rows[0] == "0 0.225000000 0.366666667 0.250000000 0.400000000"


def test_full_target_is_refused_and_untouched(tmp_path):
    start, out = samples.coco(tmp_path / "start"), tmp_path / "out"
    out.mkdir()
    convert(start, out, "voc")
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match=r"out exists and is not empty"):
        convert(start, out, "yolo")
    assert sorted(out.rglob("*")) == before


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_module, "_write_annotations", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        convert(samples.coco(tmp_path / "start"), tmp_path / "out", "voc")
    assert [p.name for p in tmp_path.iterdir()] == ["start"]


def test_images_are_copied_where_links_fail(tmp_path, monkeypatch):
    def no_links(*args):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(convert_module.os, "link", no_links)
    convert(samples.coco(tmp_path / "start"), tmp_path / "out", "voc")
    assert_same(load(tmp_path / "start"), load(tmp_path / "out"), 0)


def test_what_only_decoding_shows_is_refused(tmp_path):
    """A photo that EXIF turns, whose record has the size as stored."""
    samples.coco(tmp_path / "start")
    file = tmp_path / "start" / "images" / "001.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(file).save(file, exif=exif)
    with pytest.raises(UserError, match=r"says 40 x 30 pixels, 001\.jpg has 30 x 40"):
        convert(tmp_path / "start", tmp_path / "end", to="yolo")
    assert not (tmp_path / "end").exists()


def test_faulty_data_is_refused(tmp_path):
    root = samples.coco(tmp_path / "start")
    (root / "images" / "001.jpg").unlink()
    with pytest.raises(UserError, match=r"001\.jpg does not exist"):
        convert(root, tmp_path / "out", "voc")
    assert not (tmp_path / "out").exists()
