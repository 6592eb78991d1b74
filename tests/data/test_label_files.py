"""Each image of a YOLO folder gets its label file, and no label file is lost without a word."""

import unicodedata

import pytest

from boxwright.config import UserError
from boxwright.data.read import parse, read
from helpers import datasets as samples

ROW = "0 .5 .5 .2 .2\n"
E_ONE, E_TWO = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


def boxes(root, images, labels, yaml="train: images\nnames: [a]\n"):
    """(boxes by file name, kinds of the faults) of images and label files in a new folder."""
    for file in images:
        samples.image(root / file)
    for file in labels:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(ROW)
    (root / "data.yaml").write_text(yaml)
    parsed = parse(root)
    found = {image.path.name: len(image.boxes) for images in parsed.splits.values() for image in images}
    return found, [fault.kind for fault in parsed.faults]


@pytest.mark.parametrize(
    ("image", "label", "kinds"),
    [
        ("images/a.jpg", "labels/a.txt", []),
        ("images/a.jpg", "labels/a.jpg.txt", []),
        ("images/a.jpg", "images/a.txt", []),
        ("images/a.JPG", "Labels/a.TXT", ["found-image"]),
        ("images/a.jpg", "labels/A.txt", ["found-image"]),
        (f"images/{E_ONE}.jpg", f"labels/{E_TWO}.txt", ["found-image"]),
        (f"images/{E_TWO} 1.jpg", "labels/%C3%A9%201.txt", ["found-image"]),
        ("images/%C3%A9.jpg", f"labels/{E_ONE}.txt", ["found-image"]),
        ("images/deep/er/a.jpg", "labels/deep/er/a.txt", []),
        ("images/Deep/a.jpg", "labels/deep/a.txt", []),
    ],
)
def test_the_label_of_an_image_is_found(tmp_path, image, label, kinds):
    assert boxes(tmp_path, [image], [label]) == ({image.rpartition("/")[2]: 1}, kinds)


def test_an_exact_name_is_never_taken_by_another_image(tmp_path):
    found, kinds = boxes(tmp_path, ["images/a.jpg", "images/A.jpg"], ["labels/a.txt"])
    assert (found, kinds) == ({"a.jpg": 1, "A.jpg": 0}, [])


def test_two_images_of_one_stem_are_told_apart_or_warned_of(tmp_path):
    found, kinds = boxes(tmp_path, ["images/a.jpg", "images/a.png"], ["labels/a.txt"])
    assert (found, kinds) == ({"a.jpg": 1, "a.png": 1}, ["shared-label"])
    (tmp_path / "labels" / "a.png.txt").write_text(ROW + ROW)
    found, kinds = boxes(tmp_path, [], [])
    assert (found, kinds) == ({"a.jpg": 1, "a.png": 2}, [])


def test_a_label_that_may_belong_to_an_unlabelled_image_is_refused(tmp_path):
    _, kinds = boxes(tmp_path, ["images/a.jpg", "images/b.jpg"], ["labels/a.txt", "labels/b_new.txt"])
    assert kinds == ["unmatched-label"]
    with pytest.raises(UserError, match=r"b_new\.txt: there is no image of this name"):
        read(tmp_path)


def test_labels_of_images_outside_a_list_are_no_fault(tmp_path):
    names = ["a", "b", "c", "deep/d"]
    (tmp_path / "train.txt").write_text("images\\a.jpg\n./images/b.jpg\n")
    found, kinds = boxes(
        tmp_path,
        [f"images/{n}.jpg" for n in names],
        [f"labels/{n}.txt" for n in names],
        "train: train.txt\nnames: [a]\n",
    )
    assert (found, kinds) == ({"a.jpg": 1, "b.jpg": 1}, [])


def test_a_list_of_another_machine(tmp_path):
    (tmp_path / "train.txt").write_text("/home/me/set/images/a.jpg\n")
    assert boxes(tmp_path, ["images/a.jpg"], ["labels/a.txt"], "train: train.txt\nnames: [a]\n") == (
        {"a.jpg": 1},
        ["found-image"],
    )


@pytest.mark.parametrize("text", ["cat\ndog\n", "cat\r\ndog"])
def test_names_in_a_file(tmp_path, text):
    (tmp_path / "obj.names").write_text(text)
    boxes(tmp_path, ["images/a.jpg"], ["labels/a.txt"], "train: images\nnames: obj.names\n")
    assert read(tmp_path).names == ("cat", "dog")


def test_folders_in_other_capitals(tmp_path):
    assert boxes(tmp_path, ["Images/Train/a.jpg"], ["LABELS/train/a.txt"], "train: images/train\nnames: [a]\n") == (
        {"a.jpg": 1},
        [],
    )


def test_pixels_are_refused_with_what_is_expected(tmp_path):
    boxes(tmp_path, ["images/a.jpg"], ["labels/a.txt"])
    (tmp_path / "labels" / "a.txt").write_text("0 20 15 4 4\n0 5 5 6 12\n")
    with pytest.raises(UserError, match="pixels, not fractions"):
        read(tmp_path)


def test_linked_folders_and_hidden_files(tmp_path):
    samples.image(tmp_path / "store" / "c.jpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cam").symlink_to(tmp_path / "store")
    found, kinds = boxes(
        tmp_path, ["images/a.jpg", "images/._a.jpg"], ["labels/a.txt", "labels/._a.txt", "labels/cam/c.txt"]
    )
    assert (found, kinds) == ({"a.jpg": 1, "c.jpg": 1}, [])


def test_labels_of_a_folder_without_images_are_not_lost(tmp_path):
    _, kinds = boxes(tmp_path, ["images/a.jpg"], ["labels/a.txt", "labels/cam/c.txt"])
    assert kinds == ["unmatched-label"]
