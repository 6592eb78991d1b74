"""Every layout that people have, read from disk."""

import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from boxwright.config import UserError
from boxwright.data.read import parse, read
from helpers import datasets as samples

BOXES_CAT = [[4, 5, 14.5, 17]]


def summary(dataset):
    """Images and boxes by split."""
    return {split: (len(rs), sum(len(r.boxes_N4) for r in rs)) for split, rs in dataset.splits.items()}


def test_voc_ids_that_no_file_can_have(tmp_path):
    root = samples.voc(tmp_path)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n" + "[" * 3000 + "\n" + "b/" * 3000 + "\n")
    assert "missing-annotation" not in [fault.kind for fault in parse(root).faults]


def test_entities_of_xml_that_multiply_or_name_files_are_refused(tmp_path):
    root = samples.voc(tmp_path)
    file = next(root.rglob("*.xml"))
    content = file.read_text().partition("?>")[2] or file.read_text()
    (tmp_path / "secret.txt").write_text("secret")
    lines = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<!DOCTYPE annotation [<!ENTITY e0 "lol">{lines}]>' + content.replace("cat", "&e11;")
    outside = f'<!DOCTYPE annotation [<!ENTITY e0 SYSTEM "{tmp_path}/secret.txt">]>' + content.replace("cat", "&e0;")
    for text in (bomb, outside):
        file.write_text(text)
        begun = time.process_time()
        assert "broken-file" in [fault.kind for fault in parse(root).faults]
        assert time.process_time() - begun < 30  # ten to the power of 11 words take days


# COCO


def test_coco_single_file(tmp_path):
    dataset = read(samples.coco(tmp_path))
    assert dataset.format == "coco"
    assert (dataset.names, dataset.category_ids) == (("cat", "dog"), (3, 7))
    assert summary(dataset) == {"all": (3, 4)}
    record = dataset.splits["all"][1]
    assert (record.image_id, record.width, record.height) == (2, 40, 30)
    assert record.boxes_N4.tolist() == BOXES_CAT
    assert "annotations.json" in record.source
    assert "2" in record.source


@pytest.mark.parametrize(
    ("files", "images", "splits"),
    [
        (["annotations/instances_{}2017.json"], "{}2017", ("train", "val")),
        (["annotations/instances_{}2017.json"], "images/{}2017", ("train", "val")),
        (["annotations/{}.json"], "images", ("train", "val")),
        (["Annotations/{}.json"], "Images", ("train", "val")),
        (["annotations/{}.json"], "images/{}", ("train", "test")),
        (["{}/_annotations.coco.json"], "{}", ("train", "valid", "test")),
        (["{}/annotations.json"], "{}/images", ("train", "val")),
        (["{}.json"], "{}", ("train", "val")),
        (["{}.json"], "images", ("train", "val")),
        (["annotations_{}.json"], ".", ("train", "val")),
        (["annotations/instances_{}.json"], "{}", ("train", "minival")),
    ],
)
def test_coco_layouts(tmp_path, files, images, splits):
    for k, split in enumerate(splits):
        content = samples.coco_content(2, first=10 * k + 1)
        samples.write_json(tmp_path / files[0].format(split), content)
        for row in content["images"]:
            samples.image(tmp_path / images.format(split) / row["file_name"])
    dataset = read(tmp_path)
    assert summary(dataset) == {split.replace("valid", "val"): (2, 3) for split in splits}
    assert all(r.path.is_file() for rs in dataset.splits.values() for r in rs)


def test_coco_bare_file(tmp_path):
    samples.coco(tmp_path)
    assert summary(read(tmp_path / "annotations.json")) == {"all": (3, 4)}
    (tmp_path / "annotations.json").rename(tmp_path / "images" / "my_labels.json")
    assert summary(read(str(tmp_path / "images" / "my_labels.json"))) == {"all": (3, 4)}


def test_coco_leaves_other_tasks_alone(tmp_path):
    samples.coco(tmp_path)
    (tmp_path / "annotations").mkdir()
    shutil.move(tmp_path / "annotations.json", tmp_path / "annotations" / "instances_train2017.json")
    samples.write_json(tmp_path / "annotations" / "captions_train2017.json", {"images": [], "annotations": []})
    assert summary(read(tmp_path)) == {"train": (3, 4)}


def test_coco_ignore_flags_and_sizes_from_the_header(tmp_path):
    content = samples.coco_content()
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["difficult"] = 1
    del content["images"][0]["width"], content["images"][0]["height"]
    records = read(samples.coco(tmp_path, content)).splits["all"]
    assert [r.ignore_N.tolist() for r in records] == [[True, False], [True], [False]]
    assert (records[0].width, records[0].height) == (40, 30)


def test_coco_file_names_with_folders_and_backslashes(tmp_path):
    content = samples.coco_content(2)
    content["images"][0]["file_name"] = "images/a/001.jpg"
    content["images"][1]["file_name"] = "images\\b\\001.jpg"
    samples.write_json(tmp_path / "annotations.json", content)
    for name in "ab":
        samples.image(tmp_path / "images" / name / "001.jpg")
    assert len({r.path for r in read(tmp_path).splits["all"]}) == 2


def test_coco_ids_of_another_type_are_the_same_ids(tmp_path):
    content = samples.coco_content()
    content["images"][0]["id"], content["images"][1]["id"], content["images"][2]["id"] = "1", "x", 3.0
    content["annotations"][1]["image_id"], content["annotations"][2]["image_id"] = "x", "3"
    content["annotations"][0]["category_id"], content["categories"][0]["id"] = "3", "7"
    dataset = read(samples.coco(tmp_path, content))
    assert summary(dataset) == {"all": (3, 4)}
    assert [record.image_id for record in dataset.splits["all"]] == ["1", "x", 3]
    assert dataset.category_ids == (3, 7)


def test_coco_ids_that_differ_as_text_stay_apart(tmp_path):
    content = samples.coco_content()
    for row, id_ in zip(content["images"], ["7", "07", "007"], strict=True):
        row["id"] = id_
    for row, id_ in zip(content["annotations"], ["7", "07", "007", "7"], strict=True):
        row["image_id"] = id_
    assert [len(record.boxes_N4) for record in read(samples.coco(tmp_path, content)).splits["all"]] == [2, 1, 1]


def test_coco_image_named_only_by_its_address(tmp_path):
    content = samples.coco_content()
    samples.coco(tmp_path, content)
    for row in content["images"]:
        row["coco_url"] = "http://host/images/" + row.pop("file_name")
    samples.write_json(tmp_path / "annotations.json", content)
    assert summary(read(tmp_path)) == {"all": (3, 4)}


def test_coco_splits_in_one_folder_leave_no_image_unlisted(tmp_path):
    for k, split in enumerate(("train", "val")):
        content = samples.coco_content(2, first=10 * k + 1)
        samples.write_json(tmp_path / "annotations" / f"{split}.json", content)
        for row in content["images"]:
            samples.image(tmp_path / "images" / row["file_name"])
    assert parse(tmp_path).faults == []


def test_coco_category_that_is_only_a_heading_is_no_class(tmp_path):
    content = samples.coco_content()
    for row in content["categories"]:
        row["supercategory"] = "animals"
    content["categories"].append({"id": 0, "name": "animals", "supercategory": "none"})
    assert read(samples.coco(tmp_path, content)).names == ("cat", "dog")


def test_coco_supercategory_of_itself_is_a_class(tmp_path):
    content = samples.coco_content()
    content["categories"].append({"id": 9, "name": "person", "supercategory": "person"})
    assert read(samples.coco(tmp_path, content)).names == ("cat", "dog", "person")


# VOC


def test_voc_devkit_with_lists(tmp_path):
    samples.voc(tmp_path, {"train": ["a b", "b"], "val": ["c"], "trainval": ["a b", "b", "c"]})
    (tmp_path / "ImageSets" / "Main" / "cat_train.txt").write_text("b  1\nc -1\n")
    dataset = read(tmp_path)
    assert (dataset.format, dataset.names, dataset.category_ids) == ("voc", ("cat", "dog"), (1, 2))
    assert summary(dataset) == {"train": (2, 4), "val": (1, 2)}
    assert dataset.splits["val"][0].boxes_N4.tolist() == [[4, 5, 14, 17], [20, 10, 28, 18]]
    assert [r.image_id for r in dataset.splits["train"]] == [1, 2]


def test_voc_trainval_stays_without_train(tmp_path):
    assert list(read(samples.voc(tmp_path, {"trainval": ["a"], "test": ["b"]})).splits) == ["trainval", "test"]


def test_voc_nested_one_level_down(tmp_path):
    samples.voc(tmp_path / "BCCD")
    (tmp_path / "README.md").write_text("words")
    dataset = read(tmp_path)
    assert (summary(dataset), dataset.root) == ({"train": (2, 4), "val": (1, 2)}, tmp_path)


@pytest.mark.parametrize(("xml", "images"), [("annotations", "images"), (".", "."), ("Annotations", "JPEGImages")])
def test_voc_without_lists(tmp_path, xml, images):
    for stem in "ab":
        samples.xml(tmp_path / xml / f"{stem}.xml", samples.thing(difficult=int(stem == "b")))
        samples.image(tmp_path / images / f"{stem}.png")
    records = read(tmp_path).splits["all"]
    assert [(r.path.name, r.ignore_N.tolist()) for r in records] == [("a.png", [False]), ("b.png", [True])]


def test_voc_split_folders(tmp_path):
    for split in ("train", "valid"):
        samples.xml(tmp_path / split / f"{split}.xml", samples.thing())
        samples.image(tmp_path / split / f"{split}.jpg")
    assert summary(read(tmp_path)) == {"train": (1, 1), "val": (1, 1)}


def test_voc_image_found_by_filename_and_size_by_header(tmp_path):
    samples.xml(tmp_path / "Annotations" / "a.xml", samples.thing(), name="other.png", width=0, height="")
    samples.image(tmp_path / "JPEGImages" / "other.png", 21, 17)
    (record,) = read(tmp_path).splits["all"]
    assert (record.path.name, record.width, record.height) == ("other.png", 21, 17)


def test_voc_image_without_xml_is_background(tmp_path):
    samples.image(samples.voc(tmp_path, {"train": ["a"]}) / "JPEGImages" / "b.jpg")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    assert summary(read(tmp_path)) == {"train": (2, 2)}


@pytest.mark.parametrize(
    ("xml", "images"),
    [("labels", "images"), ("annotations/xmls", "images"), ("Annotations", "Images"), ("ANNOTATIONS", "jpegimages")],
)
def test_voc_folders_of_other_names(tmp_path, xml, images):
    samples.image(tmp_path / images / "a.jpg")
    samples.xml(tmp_path / xml / "a.xml", samples.thing())
    assert summary(read(tmp_path)) == {"all": (1, 1)}


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        ([("annots", "images")], {"all": 2}),
        ([("xml", "img")], {"all": 2}),
        ([("Annotation", "Image")], {"all": 2}),
        ([("VOCdevkit/VOC2012/Annotations", "VOCdevkit/VOC2012/JPEGImages")], {"all": 2}),
        ([("Annotations/train", "JPEGImages/train"), ("Annotations/val", "JPEGImages/val")], {"train": 2, "val": 2}),
        ([("train/annots", "train/images"), ("test/annots", "test/images")], {"train": 2, "test": 2}),
        ([("train_xml", "train_image"), ("val_xml", "val_image")], {"train": 2, "val": 2}),
        ([("Annotations/cat", "Images/cat"), ("Annotations/dog", "Images/dog")], {"all": 4}),
        ([("cats", "cats"), ("dogs", "dogs")], {"all": 4}),
        ([("train/a", "train/a"), ("train/b", "train/b"), ("test/a", "test/a")], {"train": 4, "test": 2}),
    ],
)
def test_voc_folders_of_any_name(tmp_path, folders, splits):
    """Files of one name in several folders are told apart by the folders."""
    for xml, images in folders:
        for stem in "ab":
            samples.xml(tmp_path / xml / f"{stem}.xml", samples.thing())
            samples.image(tmp_path / images / f"{stem}.jpg")
    parsed = parse(tmp_path)
    assert {split: len(images) for split, images in parsed.splits.items()} == splits
    assert parsed.faults == []


@pytest.mark.parametrize(
    ("file", "images"),
    [("ann_{}.json", "{}2017"), ("coco/{}_coco.json", "imgs/{}"), ("a/b/annotations/{}.json", "a/b/{}")],
)
def test_coco_files_of_any_name(tmp_path, file, images):
    for split in ("train", "val"):
        names = [f"{split}{n}.jpg" for n in range(3)]
        for name in names:
            samples.image(tmp_path / images.format(split) / name)
        rows = [{"id": n, "file_name": name, "width": 24, "height": 16} for n, name in enumerate(names)]
        objects = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9]} for n in range(3)]
        content = {"images": rows, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
        path = tmp_path / file.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    assert summary(read(tmp_path)) == {"train": (3, 3), "val": (3, 3)}


@pytest.mark.parametrize(
    ("labels", "images", "yaml"),
    [
        ("{}/txt", "{}/imgs", "{0}: {0}/imgs"),
        ("annotations/{}", "images/{}", "{0}: images/{0}"),
        ("d/{}/labels", "d/{}/images", "{0}: /content/other/d/{0}/images"),
        ("d/{}/labels", "d/{}/images", "{0}: C:\\me\\d\\{0}\\images"),
        ("d/e/labels/{}", "d/e/images/{}", None),
        ("obj_{}_data", "obj_{}_data", None),
    ],
)
def test_yolo_folders_of_any_name(tmp_path, labels, images, yaml):
    for split in ("train", "val"):
        samples.image(tmp_path / images.format(split) / "a.jpg")
        (tmp_path / labels.format(split)).mkdir(parents=True, exist_ok=True)
        (tmp_path / labels.format(split) / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    if yaml:
        text = "\n".join([yaml.format("train"), yaml.format("val"), "names: [cat]"])
        (tmp_path / "data.yaml").write_text(text)
    else:
        (tmp_path / "classes.txt").write_text("cat\n")
    parsed = parse(tmp_path)
    assert {split: [len(i.boxes) for i in images] for split, images in parsed.splits.items()} == {
        "train": [1],
        "val": [1],
    }
    assert parsed.faults == []


def test_voc_splits_that_share_a_folder_of_images(tmp_path):
    for split, stem in (("train", "a"), ("test", "b"), ("", "c")):
        samples.image(tmp_path / "images" / f"{stem}.jpg")
        if split:
            samples.xml(tmp_path / "annots" / split / f"{stem}.xml", samples.thing())
    parsed = parse(tmp_path)
    assert {split: len(images) for split, images in parsed.splits.items()} == {"train": 1, "test": 1}
    assert [fault.kind for fault in parsed.faults] == ["unlisted-image"]


def test_voc_folders_of_which_some_name_a_split(tmp_path):
    for folder in ("set/train", "set/more"):
        samples.xml(tmp_path / "annots" / folder / "a.xml", samples.thing())
        samples.image(tmp_path / "images" / folder / "a.jpg")
    with pytest.raises(UserError, match=r"more has XML files, and names no split, as .*train does"):
        parse(tmp_path)


@pytest.mark.parametrize("place", ["ImageSets", "imagesets/main", "splits", "Annotations", "."])
@pytest.mark.parametrize("line", ["{}", "{}.jpg", "JPEGImages/{}.jpg", "{} 1 1 1", "./Annotations/{}.xml"])
def test_voc_split_lists_in_unusual_places(tmp_path, place, line):
    shutil.rmtree(samples.voc(tmp_path) / "ImageSets")
    for split, stems in {"train": ["a", "b"], "val": ["c"]}.items():
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / f"{split}.txt").write_text("".join(f"{line.format(stem)}\n" for stem in stems))
    assert summary(read(tmp_path)) == {"train": (2, 4), "val": (1, 2)}


def test_voc_several_boxes_in_one_object(tmp_path):
    samples.voc(tmp_path)
    second = "<bndbox><xmin>20</xmin><ymin>3</ymin><xmax>30</xmax><ymax>9</ymax></bndbox></object>"
    samples.xml(tmp_path / "Annotations" / "a.xml", samples.thing("dog").replace("</object>", second))
    record = read(tmp_path).splits["train"][0]
    assert record.boxes_N4.tolist() == [[4, 5, 14, 17], [20, 3, 30, 9]]
    assert record.labels_N.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ("<polygon><x1>4</x1><y1>5</y1><x2>14.5</x2><y2>6</y2><x3>9</x3><y3>17</y3></polygon>", [4, 5, 14.5, 17]),
        ("<polygon><pt><x>4</x><y>5</y></pt><pt><x>9</x><y>8</y></pt></polygon>", [4, 5, 9, 8]),
        ("<robndbox><cx>10</cx><cy>9</cy><w>8</w><h>4</h><angle>1.5707963267948966</angle></robndbox>", [8, 5, 12, 13]),
        ("<polygon><x1>0</x1><y1>0</y1></polygon>" + samples.thing().partition("</difficult>")[2][:-9], [4, 5, 14, 17]),
    ],
)
def test_voc_objects_of_another_shape_have_the_box_around_it(tmp_path, shape, box):
    samples.voc(tmp_path)
    samples.xml(tmp_path / "Annotations" / "a.xml", f"<object><name>cat</name>{shape}</object>")
    assert np.allclose(read(tmp_path).splits["train"][0].boxes_N4, [box])
    notes = [fault for fault in parse(tmp_path).faults if fault.kind == "derived-box"]
    assert len(notes) == ("<bndbox>" not in shape)


@pytest.mark.parametrize(
    "shape",
    [
        "",
        "<polygon/>",
        "<polygon><x1>4</x1></polygon>",
        "<polygon><x1>four</x1><y1>5</y1></polygon>",
        "<robndbox><cx>4</cx></robndbox>",
    ],
)
def test_voc_object_without_a_shape_is_a_fault(tmp_path, shape):
    samples.voc(tmp_path)
    samples.xml(tmp_path / "Annotations" / "a.xml", f"<object><name>cat</name>{shape}</object>")
    (fault,) = (fault for fault in parse(tmp_path).faults if fault.kind == "broken-record")
    assert "a.xml, object 1" in fault.where


def test_voc_objects_that_labelme_deleted_are_none(tmp_path):
    samples.voc(tmp_path)
    deleted = samples.thing("dog").replace("</name>", "</name><deleted>1</deleted>")
    kept = samples.thing().replace("</name>", "</name><deleted>0</deleted>")
    samples.xml(tmp_path / "Annotations" / "a.xml", deleted + kept)
    record = read(tmp_path).splits["train"][0]
    assert record.boxes_N4.tolist() == [[4, 5, 14, 17]]


def test_yaml_folders_that_lie_deeper_are_found(tmp_path):
    samples.yolo(tmp_path / "download" / "ds")
    shutil.move(tmp_path / "download" / "ds" / "data.yaml", tmp_path / "data.yaml")
    parsed = parse(tmp_path)
    assert summary(read(tmp_path)) == {"train": (2, 4), "val": (1, 2)}
    assert {fault.kind for fault in parsed.faults} == {"found-image"}
    shutil.copytree(tmp_path / "download" / "ds", tmp_path / "download" / "copy")
    faults = [fault for fault in parse(tmp_path).faults if fault.kind == "missing-split"]
    assert len(faults) == 2  # a guess would be no better than a coin
    assert "download/copy/images/train and download/ds/images/train" in faults[0].what


def test_predictions_are_no_labels(tmp_path):
    label = samples.yolo(tmp_path) / "labels" / "train" / "a.txt"
    label.write_text("0 0.5 0.5 0.25 0.5 0.83\n")
    (fault,) = (fault for fault in parse(tmp_path).faults if fault.kind == "broken-record")
    assert "confidence" in fault.what


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_texts_of_windows_are_read(tmp_path, encoding):
    samples.yolo(tmp_path)
    files = [tmp_path / "data.yaml", *(tmp_path / "labels").rglob("*.txt")]
    for file in files:
        file.write_bytes(file.read_text().replace("\n", "\r\n").encode(encoding))
    assert summary(read(tmp_path)) == {"train": (2, 4), "val": (1, 2)}


@pytest.mark.parametrize("encoding", ["gb2312", "gbk", "shift_jis", "utf-16", "iso-8859-1", "utf-8"])
def test_voc_encodings(tmp_path, encoding):
    samples.voc(tmp_path)
    name = "chèvre" if encoding.startswith("iso") else "猫"
    file = samples.xml(tmp_path / "Annotations" / "a.xml", samples.thing("NAME"))
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n' + file.read_text().replace("NAME", name)
    file.write_bytes(text.encode(encoding))
    assert name in read(tmp_path).names


def test_voc_encoding_that_does_not_exist_is_a_fault(tmp_path):
    samples.voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text('<?xml version="1.0" encoding="klingon"?><annotation/>')
    assert "broken-file" in [fault.kind for fault in parse(tmp_path).faults]


def test_voc_filename_decides_between_images_of_one_stem(tmp_path):
    samples.voc(tmp_path, {"train": ["a"]})
    shutil.rmtree(tmp_path / "ImageSets")
    samples.image(tmp_path / "JPEGImages" / "a.png")
    records = read(tmp_path).splits["all"]
    assert {record.path.name: len(record.boxes_N4) for record in records} == {"a.jpg": 2, "a.png": 0}
    samples.xml(tmp_path / "Annotations" / "a.xml", samples.thing(), name="b.jpg")
    assert "ambiguous-image" in [fault.kind for fault in parse(tmp_path).faults]


@pytest.mark.parametrize("name", ["photo", "D:\\x\\PHOTO.JPG", "x/photo.jpg", "ph%6Fto.jpg"])
def test_voc_filename_written_elsewhere(tmp_path, name):
    samples.image(tmp_path / "images" / "photo.jpg")
    samples.xml(tmp_path / "annotations" / "1.xml", samples.thing(), name=name)
    parsed = parse(tmp_path)
    assert [(image.path.name, len(image.boxes)) for image in parsed.splits["all"]] == [("photo.jpg", 1)]
    assert [fault.kind for fault in parsed.faults] == ["found-image"]


def test_voc_class_list_keeps_order_and_unused_classes(tmp_path):
    (samples.voc(tmp_path) / "classes.txt").write_text("dog\nzebra\ncat\n")
    dataset = read(tmp_path)
    assert dataset.names == ("dog", "zebra", "cat")
    assert dataset.splits["val"][0].labels_N.tolist() == [2, 0]


# YOLO


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/train\nval: images/val\nnames: [cat, dog]\n",
        "path: .\ntrain: images/train\nval: images/val\ntest:\nnc: 2\nnames:\n  0: cat\n  1: dog\n",
        "path: ../{here}\ntrain: images/train\nval: [images/val]\nnames: ['cat', 'dog']\n",
        "path: /nowhere/else\ntrain: ./images/train\nval: images/val\nnames: [cat, dog]\n",
        "train: ../images/train\nvalid: ../images/val\nnames: [cat, dog]\n",
        "train: train.txt\nval: images/val\nnames: [cat, dog]\n",
    ],
)
def test_yolo_layouts(tmp_path, yaml):
    samples.yolo(tmp_path, yaml.format(here=tmp_path.name))
    (tmp_path / "train.txt").write_text("./images/train/a.jpg\nimages/train/b.jpg\n\n")
    dataset = read(tmp_path)
    assert (dataset.format, dataset.names) == ("yolo", ("cat", "dog"))
    assert summary(dataset) == {"train": (2, 4), "val": (1, 2)}
    assert dataset.splits["val"][0].boxes_N4[0].tolist() == [15, 7.5, 25, 22.5]
    assert summary(read(tmp_path / "data.yaml")) == summary(dataset)


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 2000, "0:" + "[" * 3000])
@pytest.mark.parametrize("key", ["train", "path", "own"])
def test_yolo_paths_that_no_file_can_have(tmp_path, path, key):
    settings = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"]} | {key: path}
    root = samples.yolo(tmp_path, json.dumps(settings))
    kinds = [fault.kind for fault in parse(root).faults]
    assert kinds == (["missing-split"] if key == "train" else [])


def test_yolo_roboflow_layout(tmp_path):
    for split in ("train", "valid", "test"):
        samples.image(tmp_path / split / "images" / f"{split}.jpg")
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels" / f"{split}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['no']\n"
    )
    dataset = read(tmp_path)
    assert dataset.names == ("no",)
    assert summary(dataset) == {"train": (1, 1), "val": (1, 1), "test": (1, 1)}


def test_yolo_rows_of_every_kind(tmp_path):
    (samples.yolo(tmp_path) / "labels" / "val" / "c.txt").write_text(
        "0 0.5 0.5 0.25 0.5\n1.0 0.1 0.2 0.5 0.2 0.3 0.9\n\n0\t0.1 0.1  0.2 0.1 0.2 0.3 0.1 0.3\r\n"
    )
    (tmp_path / "labels" / "train" / "a.txt").write_text("")
    (tmp_path / "labels" / "train" / "b.txt").unlink()
    samples.image(tmp_path / "images" / "train" / "more" / "d.jpg")
    (tmp_path / "labels" / "train" / "more").mkdir()
    (tmp_path / "labels" / "train" / "more" / "d.txt").write_text("1 0.5 0.5 1 1\n")
    dataset = read(tmp_path)
    (record,) = dataset.splits["val"]
    np.testing.assert_allclose(record.boxes_N4, [[15, 7.5, 25, 22.5], [4, 6, 20, 27], [4, 3, 8, 9]])
    assert record.labels_N.tolist() == [0, 1, 0]
    assert summary(dataset)["train"] == (3, 1)


def test_yolo_keypoint_rows_open_with_a_box(tmp_path):
    root = samples.yolo(tmp_path, "train: images/train\nval: images/val\nnames: [cat]\nkpt_shape: [2, 3]\n")
    for name in ("train/a", "train/b", "val/c"):
        (root / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.9 0.9 1\n")
    assert read(root).splits["val"][0].boxes_N4.tolist() == [[10, 7.5, 30, 22.5]]


def test_yolo_class_numbers_with_holes(tmp_path):
    yaml = "train: images/train\nval: images/val\nnames:\n  4: dog\n  1: cat\n"
    root = samples.yolo(tmp_path, yaml)
    for name in ("train/a", "train/b", "val/c"):
        (root / "labels" / f"{name}.txt").write_text("4 0.5 0.5 0.5 0.5\n")
    dataset = read(root)
    assert dataset.names == ("cat", "dog")
    assert dataset.splits["val"][0].labels_N.tolist() == [1]


def test_yolo_size_is_that_of_the_image_as_displayed(tmp_path):
    root = samples.yolo(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(root / "images" / "val" / "c.jpg", exif=exif)
    assert (read(root).splits["val"][0].width, read(root).splits["val"][0].height) == (30, 40)


# All formats


def test_boxes_without_area_are_left_out_and_counted_once(tmp_path, capsys):
    content = samples.coco_content()
    boxes = [[4, 5, 0, 3], [8, 8, -2, 4], [50, 50, 5, 5], [float("nan"), 1, 2, 3]]
    for row, box in zip(content["annotations"], boxes, strict=True):
        row["bbox"] = box
    content["annotations"].append({"id": 9, "image_id": 1, "category_id": 3, "bbox": [-5, -5, 20, 100]})
    content["annotations"].append({"id": 10, "image_id": 99, "category_id": 3, "bbox": [1, 1, 2, 2]})
    dataset = read(samples.coco(tmp_path, content))
    assert [r.boxes_N4.tolist() for r in dataset.splits["all"]] == [[[-5, -5, 15, 95]], [], []]
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "5 objects" in printed
    assert f"boxwright check {tmp_path}" in printed


def test_byte_order_mark_is_no_fault(tmp_path):
    file = samples.coco(tmp_path) / "annotations.json"
    file.write_text(json.dumps(samples.coco_content()), encoding="utf-8-sig")
    assert summary(read(tmp_path)) == {"all": (3, 4)}
