"""Recognising a data set, its splits, and one clear line for what cannot be read."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from boxwright.config import UserError
from boxwright.data.read import merge_val, read, train_and_val
from boxwright.data.records import Dataset
from helpers import datasets as samples


def two_yaml_files(root):
    (samples.yolo(root) / "data.yaml").rename(root / "a.yaml")
    (root / "b.yml").write_text("names: [a]\ntrain: images\n")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: None, r"data does not exist \(did you mean 'date'\?\)"),
        (lambda r: r.mkdir(), r"data is empty"),
        (lambda r: samples.image(r / "a.jpg"), r"no format that boxwright knows \(seen: 1 \.jpg\); known are COCO"),
        (lambda r: samples.write_json(r / "labels" / "a.txt", 1), r"labels/ without data\.yaml"),
        (lambda r: (samples.coco(r), samples.yolo(r)), r"2 formats at once: COCO \(annotations\.json\) and YOLO"),
        (lambda r: (samples.voc(r), samples.yolo(r)), r"PASCAL VOC \(.*Annotations/\*\.xml\) and YOLO"),
        (lambda r: (samples.coco(r / "a"), samples.voc(r / "b")), r"holds 2 data sets \(a, b\)"),
        (lambda r: r.write_text("words"), r"data is no annotation file"),
        (lambda r: samples.write_json(r / "annotations.json", {}), r"annotations\.json: has no list `images`"),
        (lambda r: samples.coco(r, {"images": [], "annotations": [], "categories": []}), r"holds no images"),
        (lambda r: (samples.image(r / "a.jpg"), samples.xml(r / "a.xml")), r"names no classes"),
        (two_yaml_files, r"several YAML files with class names \(a\.yaml, b\.yml\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_gets_one_line(tmp_path, make, message):
    (tmp_path / "date").mkdir()
    make(tmp_path / "data")
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / "data")
    assert "\n" not in str(caught.value)


def two_coco_files(root, change):
    """COCO files of train and val, the second changed."""
    for first, split in ((1, "train"), (11, "val")):
        content = samples.coco_content(2, first)
        if split == "val":
            change(content)
        samples.write_json(root / "annotations" / f"{split}.json", content)
        for row in content["images"]:
            samples.image(root / "images" / row["file_name"])
    return root


def test_a_class_of_some_coco_files_is_one_of_the_data_set(tmp_path):
    dataset = read(two_coco_files(tmp_path, lambda content: content["categories"][0].update(name="wolf")))
    assert dataset.names == ("cat", "dog", "wolf")  # those of train first, each file's in the order of its ids
    assert dataset.category_ids == (3, 7, 8)
    assert dataset.ids_of("train") == (3, 7, 8)
    assert dataset.ids_of("val") == (3, 9, 7)  # in results of val, 7 is the file's own id of wolf
    assert dataset.splits["train"][0].labels_N.tolist() == [0, 1]
    assert dataset.splits["val"][0].labels_N.tolist() == [0, 2]


def test_a_class_of_some_voc_lists_is_one_of_the_data_set(tmp_path):
    for split, label, names in (("valid", "emu", "cat\nemu\n"), ("train", "cat", "cat\ndog\n")):
        samples.image(tmp_path / split / "images" / "a.jpg")
        samples.xml(tmp_path / split / "Annotations" / "a.xml", samples.thing(label))
        (tmp_path / split / "classes.txt").write_text(names)
    dataset = read(tmp_path)
    assert dataset.names == ("cat", "dog", "emu")
    assert dataset.splits["val"][0].labels_N.tolist() == [2]


def test_lists_of_yolo_classes_may_differ_from_folder_to_folder(tmp_path):
    for split, names in (("train", "cat\ndog\n"), ("val", "emu\ncat\n")):
        samples.image(tmp_path / split / "a.jpg")
        (tmp_path / split / "classes.txt").write_text(names)
        (tmp_path / split / "a.txt").write_text("0 .5 .5 .2 .2\n1 .3 .3 .2 .2\n")
    dataset = read(tmp_path)
    assert dataset.names == ("cat", "dog", "emu")
    assert dataset.splits["train"][0].labels_N.tolist() == [0, 1]
    assert dataset.splits["val"][0].labels_N.tolist() == [2, 0]
    (tmp_path / "classes.txt").write_text("dog\n")
    with pytest.raises(UserError, match="several lists of classes that differ"):
        read(tmp_path)


def test_classes_in_another_order_are_matched_by_name(tmp_path):
    swapped = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    dataset = read(two_coco_files(tmp_path, lambda content: content.update(categories=swapped)))
    assert dataset.ids_of("val") == (7, 3)
    assert dataset.splits["train"][0].labels_N.tolist() == [0, 1]
    assert dataset.splits["val"][0].labels_N.tolist() == [1, 0]


def test_val_share_makes_a_split_only_where_there_is_none(tmp_path, capsys):
    dataset = read(samples.coco(tmp_path / "a"), val=0.34)
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 2, "val": 1}
    assert capsys.readouterr().err == ""
    dataset = read(samples.voc(tmp_path / "b"), val=0.34)
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 2, "val": 1}
    assert "1 images of its own" in capsys.readouterr().err
    dataset = read(samples.voc(tmp_path / "c", {"trainval": list("abcd"), "test": ["e"]}), val=0.5)
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 2, "val": 2, "test": 1}


def test_train_and_val(tmp_path):
    dataset = read(samples.coco(tmp_path))
    with pytest.raises(UserError, match=r"no split to validate on \(it has: all\); .*--val 0\.2.*--val-data"):
        train_and_val(dataset)
    train, val = train_and_val(dataset, 0.34)
    assert (len(train), len(val)) == (2, 1)
    assert not {r.path for r in train} & {r.path for r in val}


def test_val_that_is_train_is_refused(tmp_path, capsys):
    root = samples.yolo(tmp_path, "train: images/train\nval: images/train\nnames: [cat, dog]\n")
    with pytest.raises(UserError, match="every validation image is a training image too"):
        train_and_val(read(root))
    (root / "data.yaml").write_text("train: images/train\nval: images\nnames: [cat, dog]\n")
    train_and_val(read(root))
    assert "2 of 3 validation images" in capsys.readouterr().err


def test_without_an_object_there_is_nothing_to_learn_or_to_score(tmp_path):
    content = samples.coco_content(4)
    background = content | {"annotations": []}
    with pytest.raises(UserError, match="none of the 3 training images has an object"):
        train_and_val(read(samples.coco(tmp_path / "a", background)), 0.25)
    root = samples.voc(tmp_path / "b", {"train": ["a"], "val": ["b"]})
    samples.xml(root / "Annotations" / "b.xml", samples.thing(difficult=1))
    with pytest.raises(UserError, match="none of the 1 validation images has an object"):
        train_and_val(read(root))


def test_a_class_that_no_training_image_shows_is_named(tmp_path, capsys):
    root = samples.voc(tmp_path, {"train": ["a"], "val": ["b"]})
    samples.xml(root / "Annotations" / "a.xml", samples.thing("cat"))
    samples.xml(root / "Annotations" / "b.xml", samples.thing("cat") + samples.thing("emu"))
    train_and_val(read(root))
    assert "no training image has an object of emu" in capsys.readouterr().err


def test_test_split_is_never_trained_or_validated_on(tmp_path):
    with pytest.raises(UserError, match=r"no train split, only test; name one `train`"):
        train_and_val(read(samples.voc(tmp_path / "a", {"test": ["a"]})), 0.2)
    with pytest.raises(UserError, match=r"no split to validate on \(it has: train, test\)"):
        train_and_val(read(samples.voc(tmp_path / "b", {"train": ["a"], "test": ["b"]})))


def test_merge_val_matches_classes_by_name(tmp_path):
    content = samples.coco_content()
    content["categories"] = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 8, "name": "unused"}]
    train, val = read(samples.coco(tmp_path / "a")), read(samples.coco(tmp_path / "b", content))
    merged = merge_val(train, val)
    assert merged.names == ("cat", "dog")
    assert merged.category_ids == (7, 3)
    assert merged.splits["train"] == train.splits["all"]
    assert [r.labels_N.tolist() for r in merged.splits["val"]] == [[1, 0], [1], [1]]
    assert [r.path for r in merged.splits["val"]] == [r.path for r in val.splits["all"]]


def test_merge_val_adds_classes_that_train_lacks_and_says_so(tmp_path, capsys):
    content = samples.coco_content()
    content["categories"][-1]["name"] = "wolf"
    train, val = read(samples.coco(tmp_path / "a")), read(samples.coco(tmp_path / "b", content))
    merged = merge_val(train, val)
    assert merged.names == (*train.names, "wolf")
    assert len(set(merged.category_ids)) == len(merged.names)
    for record, before in zip(merged.splits["val"], val.splits["all"], strict=True):
        names = [[data.names[label] for label in r.labels_N] for data, r in ((merged, record), (val, before))]
        assert names[0] == names[1]
    assert "has objects of classes that" in capsys.readouterr().err
    train_and_val(merged)
    assert "no training image has an object of wolf" in " ".join(capsys.readouterr().err.split())


def test_merge_val_refuses_other_classes(tmp_path):
    train = read(samples.coco(tmp_path))
    val = replace(train, names=("tiger", "wolf"))
    with pytest.raises(UserError, match=r"objects of classes that .* lacks: tiger, wolf, and of no other"):
        merge_val(train, val)
    with pytest.raises(UserError, match=r"several splits \(train, test\) and none is called `val`"):
        merge_val(train, replace(train, splits={"train": [], "test": []}))


@pytest.mark.parametrize(
    "folders", [("Train", "Val"), ("TRAIN", "VAL"), ("train", "Valid"), ("Training", "Validation")]
)
@pytest.mark.parametrize("base", ["", "images", "Images"])
def test_folders_of_splits_in_any_spelling_with_the_same_names(tmp_path, folders, base):
    content = json.dumps(samples.coco_content())
    source = samples.coco(tmp_path / "source")
    data = tmp_path / "data"
    splits = ["train", "test" if folders[1] == "Test" else "val"]
    for split, folder in zip(splits, folders, strict=True):
        shutil.copytree(source / "images", data / base / folder)
        (data / "annotations").mkdir(exist_ok=True)
        (data / "annotations" / f"instances_{split}.json").write_text(content)
    dataset = read(data)
    for split, folder in zip(splits, folders, strict=True):
        assert {record.path.parent for record in dataset.splits[split]} == {data / base / folder}


def test_category_ids_default_to_positions_from_one(tmp_path):
    assert Dataset(tmp_path, "voc", ("a", "b"), {}).category_ids == (1, 2)
    assert np.array_equal(read(samples.yolo(tmp_path)).category_ids, [1, 2])
