"""Every kind of fault, planted and found."""

import json
from pathlib import Path

import pytest

from boxwright.config import UserError
from boxwright.data.check import CheckReport, show
from boxwright.data.faults import FAULT_KINDS
from boxwright.data.read import read
from boxwright.inspection.check import check
from helpers import datasets as samples

NAN = float("nan")
TWIN = {"image_id": 2, "category_id": 3, "bbox": [4, 5, 10.4, 12]}  # almost the box of annotation 101


def coco_with(root, change):
    """A COCO folder whose content `change` has altered."""
    content = samples.coco_content()
    change(content)
    return samples.coco(root, content)


def box(values):
    return lambda content: content["annotations"][0].update(bbox=values)


def coco_splits(root, change):
    """A COCO folder with the splits train and val; `change` alters the second."""
    for first, split in ((1, "train"), (11, "val")):
        content = samples.coco_content(2, first)
        if split == "val":
            change(content)
        samples.write_json(root / "annotations" / f"instances_{split}.json", content)
        for row in content["images"]:
            samples.image(root / split / row["file_name"])
    return root


def text(file, content):
    """Plant a text file (bytes or str) into an existing data set."""

    def plant(root):
        (root / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        return root

    return plant


def broken(file, content):
    """The data set that has such a file, with other content in it."""
    write = {"Annotations": samples.voc, "annotations.json": samples.coco, "data.yaml": samples.yolo}
    return lambda root: text(file, content)(write[file.split("/")[0]](root))


def label(content):
    """A YOLO folder with this label file."""
    return lambda root: text("labels/val/c.txt", content)(samples.yolo(root))


def voc_with(objects, **size):
    """A VOC folder with these objects in a.xml."""
    return lambda root: samples.xml(samples.voc(root) / "Annotations" / "a.xml", objects, **size)


def yolo_yaml(content):
    """A YOLO folder with this data.yaml."""
    return lambda root: samples.yolo(root, content)


def shared_image(root):
    samples.voc(root)
    (root / "JPEGImages" / "c.jpg").write_bytes((root / "JPEGImages" / "a.jpg").read_bytes())
    return root


def cut_short(root):
    file = samples.coco(root) / "images" / "002.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    return root


def remove(root, *files):
    for file in files:
        (root / file).unlink()
    return root


def outlier(root):
    """Thirty cats of about 10 x 10 pixels and one of 38 x 28."""
    content = samples.coco_content()
    content["annotations"] = [
        {"id": i, "image_id": i % 3 + 1, "category_id": 3, "bbox": [i, i / 2, 9 + i % 3, 10 - i % 2]} for i in range(30)
    ]
    content["annotations"].append({"id": 77, "image_id": 2, "category_id": 3, "bbox": [1, 1, 38, 28]})
    content["annotations"].append({"id": 78, "image_id": 2, "category_id": 7, "bbox": [1, 1, 38, 28]})
    return samples.coco(root, content)


def add(key, **row):
    return lambda content: content[key].append(row)


# kind, what plants it, a part of its `where`
def turned(root):
    """Width and height exchanged, as of an image whose EXIF orientation was not applied."""
    return coco_with(root, lambda c: c["images"][1].update(width=30, height=40))


OUTLINED = {"id": 5, "image_id": 1, "category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9]]}
PLANTED = [
    ("broken-file", broken("annotations.json", '{"images": [\n1,\n}'), "annotations.json:3"),
    ("broken-file", broken("annotations.json", "[]"), "annotations.json"),
    ("broken-file", broken("annotations.json", b"\xff\xfe\x00"), "annotations.json"),
    ("broken-file", broken("annotations.json", "[" * 100_000), "annotations.json"),
    ("broken-file", broken("Annotations/b.xml", "<annotation>\n<size></annotation>"), "b.xml:2"),
    ("broken-file", broken("Annotations/b.xml", ""), "b.xml"),
    ("broken-file", broken("Annotations/b.xml", "<svg/>"), "b.xml"),
    ("broken-file", broken("data.yaml", "names: [a\ntrain: b: c\n"), "data.yaml:2"),
    ("broken-file", broken("data.yaml", "train: images/train\n"), "data.yaml"),
    ("broken-file", broken("data.yaml", "names: {a: b}\ntrain: images/train\n"), "data.yaml"),
    ("broken-record", lambda r: coco_with(r, box([1, 2, 3])), "annotation 100"),
    ("broken-record", lambda r: coco_with(r, box("wide")), "annotation 100"),
    ("broken-record", lambda r: coco_with(r, add("annotations", id=5, image_id=1, category_id=3)), "record 5 (id 5)"),
    ("derived-box", lambda r: coco_with(r, add("annotations", **OUTLINED)), "annotations.json"),
    ("broken-record", lambda r: coco_with(r, add("annotations", image_id=[], category_id=3, bbox=[])), "record 5"),
    ("broken-record", lambda r: coco_with(r, add("categories", id="x", name="emu")), "categories"),
    ("broken-record", lambda r: coco_with(r, add("categories", id=9, name=" ")), "categories"),
    ("broken-record", broken("Annotations/a.xml", "<annotation><object/></annotation>"), "object 1"),
    ("broken-record", voc_with(samples.thing("")), "object 1"),
    ("broken-record", voc_with(samples.thing(box="abcd")), "object 1"),
    ("broken-record", label("0 .5 .5 .1 .1\n0 .5 .5\n"), "c.txt:2"),
    ("broken-record", label("cat .5 .5 .1 .1\n"), "c.txt:1"),
    ("broken-record", label("0.5 .5 .5 .1 .1\n"), "c.txt:1"),
    ("broken-record", label(b"\x00\xff\xfe\n"), "c.txt:1"),
    ("missing-image", lambda r: remove(samples.coco(r), "images/002.jpg"), "image 2"),
    ("missing-image", lambda r: remove(samples.voc(r), "JPEGImages/b.jpg"), "b.xml"),
    ("missing-image", lambda r: text("l.txt", "\nno.jpg\n")(samples.yolo(r, "train: l.txt\nnames: [a]\n")), "l.txt:2"),
    ("ambiguous-image", lambda r: _in_two_folders(samples.coco(r)), "image 2"),
    ("undecodable-image", cut_short, "002.jpg"),
    ("undecodable-image", lambda r: text("images/val/c.jpg", "words")(samples.yolo(r)), "c.jpg"),
    ("undecodable-image", lambda r: text("JPEGImages/c.jpg", "")(samples.voc(r)), "JPEGImages/c.jpg"),
    ("missing-split", yolo_yaml("train: images/typo\nval: images/val\nnames: [cat, dog]\n"), "data.yaml"),
    ("missing-split", lambda r: remove(samples.yolo(r), "labels/val/c.txt"), "labels/val"),
    ("missing-split", lambda r: remove(samples.voc(r), "Annotations/c.xml"), "val.txt"),
    ("missing-split", yolo_yaml("names: [cat, dog]\n"), "data.yaml"),
    ("unknown-class", lambda r: coco_with(r, lambda c: c["annotations"][2].update(category_id=8)), "annotation 102"),
    ("unknown-class", lambda r: text("classes.txt", "cat\ndog\n")(_strange(samples.voc(r))), "a.xml, object 2"),
    ("unknown-class", label("2 .5 .5 .1 .1\n"), "c.txt:1"),
    ("duplicate-class", lambda r: coco_with(r, _second_cat), "categories"),
    ("unused-duplicate", lambda r: coco_with(r, add("categories", id=9, name="cat")), "categories"),
    ("duplicate-class", lambda r: coco_with(r, add("categories", id=3, name="emu")), "categories"),
    ("duplicate-class", yolo_yaml("train: images/train\nnames: [cat, dog, cat]\n"), "data.yaml"),
    ("control-character", lambda r: coco_with(r, add("categories", id=9, name="e\x1b[2Jmu")), "categories"),
    ("control-character", yolo_yaml("train: images/train\nnames: [cat, \"d\\tog\"]\n"), "data.yaml"),
    ("class-lists-differ", lambda r: coco_splits(r, add("categories", id=9, name="emu")), "instances_val.json"),
    ("duplicate-id", lambda r: coco_with(r, add("images", id=2, file_name="again.jpg")), "image 2"),
    ("broken-file", lambda r: coco_with(r, lambda c: [row.update(image_id="x") for row in c["annotations"]]), ".json"),
    ("orphan-annotation", lambda r: coco_with(r, lambda c: c["annotations"][2].update(image_id=9)), "annotation 102"),
    ("orphan-annotation", lambda r: text("labels/val/d.txt", "0 .5 .5 .1 .1\n")(samples.yolo(r)), "d.txt"),
    ("not-a-number", lambda r: coco_with(r, box([1, NAN, 2, 3])), "annotation 100"),
    ("not-a-number", label("0 .5 nan .1 .1\n"), "c.txt:1"),
    ("not-a-number", voc_with(samples.thing(box=(1, 2, "inf", 4))), "object 1"),
    ("reversed-box", lambda r: coco_with(r, box([9, 9, -4, 5])), "annotation 100"),
    ("reversed-box", voc_with(samples.thing(box=(9, 9, 4, 15))), "object 1"),
    ("empty-box", lambda r: coco_with(r, box([9, 9, 0, 5])), "annotation 100"),
    ("empty-box", label("0 .5 .5 0 0\n"), "c.txt:1"),
    ("box-outside", lambda r: coco_with(r, box([30, 9, 12, 5])), "annotation 100"),
    ("box-outside", lambda r: coco_with(r, box([40.5, 9, 0.5, 5])), "annotation 100"),
    ("box-outside", label("0 .5 .5 .4 .4\n0 20 15 4 4\n"), "c.txt:2"),
    ("wrong-size", lambda r: coco_with(r, lambda c: c["images"][1].update(width=80, height=60)), "image 2"),
    ("wrong-shape", turned, "image 2"),
    ("wrong-size", voc_with(samples.thing(), width="wide"), "a.xml"),
    ("shared-image", shared_image, "c.jpg"),
    ("tiny-box", lambda r: coco_with(r, box([9, 9, 0.4, 5])), "annotation 100"),
    ("odd-size", outlier, "annotation 77"),
    ("duplicate-box", lambda r: coco_with(r, add("annotations", id=9, **TWIN)), "annotation 9"),
    ("duplicate-image", lambda r: coco_with(r, add("images", id=9, file_name="002.jpg")), "002.jpg"),
    ("duplicate-image", lambda r: text("ImageSets/Main/train.txt", "a\nb\na\n")(samples.voc(r)), "train.txt"),
    ("duplicate-annotation-id", lambda r: coco_with(r, lambda c: c["annotations"][1].update(id=100)), "annotation 100"),
    ("similar-classes", lambda r: coco_with(r, add("categories", id=9, name="Cat ")), ""),
    ("class-ids-differ", lambda r: coco_splits(r, lambda c: _renumber(c, 7, 8)), "instances_val.json"),
    ("class-count", yolo_yaml("train: images/train\nnc: 3\nnames: [cat, dog]\n"), "data.yaml"),
    ("ignored-object", lambda r: coco_with(r, lambda c: c["annotations"][0].update(iscrowd=1)), ""),
    ("ignored-object", voc_with(samples.thing() + samples.thing("emu", difficult=1)), ""),
    ("not-fractions", label("0 20 15 4 4\n1 10 4 5 6"), "labels/val"),
    ("unmatched-label", lambda r: _renamed(samples.yolo(r), "labels/train/a.txt", "labels/train/z.txt"), "z.txt"),
    ("nothing-to-learn", lambda r: coco_with(r, lambda c: [row.update(difficult=1) for row in c["annotations"]]), ""),
    ("empty-data", lambda r: coco_with(r, lambda c: [c[k].clear() for k in ("images", "annotations")]), ""),
    ("empty-data", broken("annotations.json", '{"images": [], "annotations": [], "categories": []}'), ""),
    ("no-held-out", yolo_yaml("train: [images/train, images/val]\nval: images/val\nnames: [cat, dog]\n"), ""),
    ("too-few-objects", lambda r: coco_with(r, lambda c: [a.update(image_id=1) for a in c["annotations"]]), ""),
    ("too-few-objects", lambda r: samples.coco(r, samples.coco_content(1)), ""),
    ("no-train-split", yolo_yaml("val: images/val\nnames: [cat, dog]\n"), ""),
    ("untrained-class", lambda r: coco_splits(r, _only_cats), ""),
    ("unused-class", lambda r: coco_with(r, add("categories", id=9, name="emu")), ""),
    ("empty-split", lambda r: text("ImageSets/Main/test.txt", "\n")(samples.voc(r)), "test.txt"),
    ("empty-split", lambda r: _with_folder(yolo_yaml("train: images/train\ntest: new\nnames: [a, b]\n")(r)), "yaml"),
    ("empty-split", lambda r: coco_splits(r, lambda c: [c[k].clear() for k in ("images", "annotations")]), "val.json"),
    ("shared-label", lambda r: samples.image(samples.yolo(r) / "images" / "val" / "c.png"), "c.txt"),
    ("missing-annotation", lambda r: remove(samples.voc(r), "Annotations/b.xml"), "b.xml"),
    ("background-image", lambda r: coco_with(r, lambda c: c["annotations"].pop(1)), ""),
    ("found-image", lambda r: _renamed(samples.coco(r), "images/002.jpg", "images/002.JPG"), ""),
    ("unlisted-image", lambda r: samples.image(samples.coco(r) / "images" / "spare.png"), "images"),
    ("unlisted-image", lambda r: samples.image(samples.voc(r) / "JPEGImages" / "spare.png"), "JPEGImages"),
    ("heading", lambda r: coco_with(r, lambda c: _under(c, "animals")), "categories"),
]  # fmt: skip


def _only_cats(content):
    content["categories"].append({"id": 9, "name": "emu"})
    content["annotations"][0]["category_id"] = 9


def _second_cat(content):
    content["categories"].append({"id": 9, "name": "cat"})
    content["annotations"][2].update(category_id=9)


def _renumber(content, old, new):
    for row in content["categories"]:
        row["id"] = new if row["id"] == old else row["id"]
    for row in content["annotations"]:
        row["category_id"] = new if row["category_id"] == old else row["category_id"]


def _under(content, group):
    for row in content["categories"]:
        row["supercategory"] = group
    content["categories"].append({"id": 1, "name": group})


def _strange(root):
    samples.xml(root / "Annotations" / "a.xml", samples.thing() + samples.thing("emu"))
    return root


def _renamed(root, file, name):
    (root / file).rename(root / name)
    return root


def _in_two_folders(root):
    for folder in ("one", "two"):
        samples.image(root / folder / "002.jpg")
    return remove(root, "images/002.jpg")


def _with_folder(root):
    (root / "new").mkdir()
    return root


def test_every_kind_is_planted():
    of_formats = {"unnamed-class", "unused-object", "unused-file"}  # planted in tests/data/formats
    assert {kind for kind, _, _ in PLANTED} | of_formats == set(FAULT_KINDS)


@pytest.mark.parametrize(("kind", "plant", "where"), PLANTED, ids=[f"{k}-{i}" for i, (k, _, _) in enumerate(PLANTED)])
def test_a_planted_fault_is_found_where_it_is(tmp_path, kind, plant, where):
    plant(tmp_path)
    report = check(tmp_path)
    found = [fault for fault in report.faults if fault.kind == kind]
    assert found, report.faults
    assert where in found[0].where
    assert len(found) == 1 or kind in ("missing-image", "unlisted-image", "broken-record", "not-a-number"), found
    assert report.exit_code == int(any(fault.level == "error" for fault in report.faults))
    if FAULT_KINDS[kind].level == "error":
        assert report.exit_code == 1


@pytest.mark.parametrize(("kind", "plant", "where"), PLANTED, ids=[f"{k}-{i}" for i, (k, _, _) in enumerate(PLANTED)])
def test_reading_refuses_exactly_what_cannot_be_used(tmp_path, kind, plant, where):
    plant(tmp_path)
    # Where the record tells the size, an image is opened only to decode it, by the cache.
    if FAULT_KINDS[kind].fatal and where != "JPEGImages/c.jpg" and plant not in (cut_short, turned):
        with pytest.raises(UserError, match=r"^[^\n]+$"):
            read(tmp_path)
    else:
        assert read(tmp_path).splits


@pytest.mark.parametrize("write", [samples.coco, samples.voc, samples.yolo])
def test_correct_data_has_no_fault(tmp_path, write, capsys):
    report = check(write(tmp_path))
    assert report.faults == []
    assert report.exit_code == 0
    assert "Ready to train on" in capsys.readouterr().out


def test_edge_of_a_pixel_is_rounding(tmp_path):
    assert check(coco_with(tmp_path, box([-1, 20, 41.5, 11]))).faults == []


def test_counts(tmp_path):
    content = samples.coco_content()
    content["images"][0].update(width=200, height=200)
    content["annotations"][0].update(bbox=[0, 0, 100, 100], iscrowd=1)
    content["annotations"][3].update(bbox=[0, 0, 40, 60])
    content["annotations"].pop(2)
    samples.coco(tmp_path, content)
    samples.image(tmp_path / "images" / "001.jpg", 200, 200)
    report = check(tmp_path)
    assert report.splits == {"all": {"images": 3, "background": 1, "boxes": 3, "ignored": 1}}
    cat = {"images": 2, "boxes": 2, "ignored": 1, "small": 1, "medium": 0, "large": 1, "in": {"all": 2}}
    dog = {"images": 1, "boxes": 1, "ignored": 0, "small": 0, "medium": 1, "large": 0, "in": {"all": 1}}
    assert report.classes == {"cat": cat, "dog": dog}
    assert [fault.kind for fault in report.faults] == ["too-few-objects", "ignored-object", "background-image"]


def test_json_is_one_object_and_nothing_else(tmp_path, capsys):
    coco_with(tmp_path, box([9, 9, 0, 5]))
    report = check(tmp_path, json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == report.to_json()
    assert (printed["errors"], printed["warnings"], printed["notes"], printed["format"]) == (1, 0, 0, "coco")
    (fault,) = printed["faults"]
    assert fault["kind"] == "empty-box"
    assert "annotation 100" in fault["where"]
    assert not fault["fatal"]


def test_all_faults_in_one_report(tmp_path, capsys):
    root = cut_short(tmp_path)
    content = samples.coco_content()
    content["annotations"][0]["bbox"] = [1, 1, 0, 0]
    content["annotations"][1]["category_id"] = 99
    content["annotations"][2]["bbox"] = [1, 1, 500, 5]
    content["images"].append({"id": 4, "file_name": "gone[1].jpg"})
    samples.write_json(root / "annotations.json", content)
    report = check(root)
    kinds = ["missing-image", "undecodable-image", "unknown-class", "empty-box", "box-outside", "background-image"]
    assert [fault.kind for fault in report.faults] == kinds
    printed = capsys.readouterr().out
    for fault in report.faults:
        assert f"{fault.where}: {fault.what}" in printed
        assert fault.fix in printed
    assert "gone[1].jpg" in printed
    assert "Training will refuse" in printed


def test_several_fatal_faults_make_one_line_that_counts_them(tmp_path):
    content = samples.coco_content()
    for row in content["annotations"]:
        row["category_id"] = 99
    with pytest.raises(UserError, match=r"4 faults \(`boxwright check .*`\) .*and 1 more|has 4 faults.*and 1 more"):
        read(samples.coco(tmp_path, content))


def test_document_names_every_kind():
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    for kind, entry in FAULT_KINDS.items():
        assert f"| `{kind}` | {entry.level} | {'refuses' if entry.fatal else ''}" in page


def test_no_control_character_is_printed(tmp_path, capsys):
    samples.voc(tmp_path)
    samples.image(tmp_path / "JPEGImages" / "x\x1by.png")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nx\x1by\n")
    assert any("x" in fault.where for fault in check(tmp_path).faults)
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 160])
def test_headings_stay_whole_whatever_the_width_and_names(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    splits = ("train", "val", "test", "images")
    numbers = {"images": 201, "boxes": 4153, "ignored": 0, "small": 294, "medium": 66, "large": 1}
    row = numbers | {"in": {"train": 1234567, "val": 18, "test": 805, "images": 7}}
    split = {"images": 292, "background": 0, "boxes": 3941, "ignored": 0}
    name = "a class with a name that alone would take half of a usual terminal"
    show(CheckReport("DATA", "coco", (), dict.fromkeys(splits, split), {name: row}))
    printed = capsys.readouterr().out
    words = {*numbers, *splits, "1,234,567", "4,153"}
    assert words <= set(printed.split())
    assert max(map(len, printed.splitlines()[:30])) <= width
    assert len([line for line in printed.splitlines() if line.startswith(" class")]) == (2 if width == 80 else 1)
