"""One rule for finding an image by the name in its annotation."""

import os
import unicodedata
from pathlib import Path
from unittest.mock import Mock

import pytest

from boxwright.data.folders import walk
from boxwright.data.image_index import ImageIndex, clean_name
from boxwright.data.parsed import ParsedDataset, ParsedImage

E_ONE, E_TWO = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


def touch(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def find(root, name, folder="images"):
    """(file found or None, kinds of the faults)."""
    parsed = ParsedDataset(root, "coco")
    index = ImageIndex(parsed)
    path = index.find(name, root / folder, "record 1")
    parsed.splits = {"all": [ParsedImage(path, 1, 1, 1, "record 1")]}
    index.finish()
    return str(path.relative_to(root)) if path.is_file() else None, [fault.kind for fault in parsed.faults]


@pytest.mark.parametrize(
    "name",
    [
        "C:\\Users\\me\\images\\a b.jpg",
        "..\\..\\media\\upload\\4\\a b.jpg",
        "\\\\server\\share\\a b.jpg",
        "file:///D:/x/a%20b.jpg",
        "https://host/images/a%20b.jpg?size=2#top",
        "s3://bucket/images/a b.jpg",
        "/data/local-files/?d=images/a%20b.jpg",
        "/home/me/images/a b.jpg",
        "images\\1/a b.jpg",
        "A B.JPG",
        "a b",
        "a%20b",
        "elsewhere/a b.jpg",
    ],
)
@pytest.mark.parametrize("folder", ["images", ".", "missing"])
def test_a_name_of_another_machine_is_found_with_one_note(tmp_path, name, folder):
    touch(tmp_path, "images/a b.jpg", "images/b.jpg", "labels/a b.txt")
    assert find(tmp_path, name, folder) == ("images/a b.jpg", ["found-image"])


def test_unicode_forms_are_one_name(tmp_path):
    touch(tmp_path, f"images/{E_TWO}.jpg")
    assert find(tmp_path, f"{E_ONE}.jpg") == (f"images/{E_TWO}.jpg", ["found-image"])
    assert find(tmp_path, "%C3%89.JPG") == (f"images/{E_TWO}.jpg", ["found-image"])


def test_as_written_comes_first_and_needs_no_note(tmp_path):
    touch(tmp_path, "images/a.jpg", "images/A.jpg", "images/a%20b.jpg", "images/a b.jpg", "images/sub/a.jpg")
    for name in ("a.jpg", "A.jpg", "a%20b.jpg", "sub/a.jpg", "sub\\a.jpg", "..\\images\\a.jpg"):
        assert find(tmp_path, name)[1] == []
    assert find(tmp_path, "..\\images\\a.jpg")[0] == "images/a.jpg"


def test_the_folders_of_a_name_decide_between_files_of_one_base_name(tmp_path):
    touch(tmp_path, "train/a.jpg", "val/a.jpg")
    assert find(tmp_path, "D:\\set\\val\\a.jpg") == ("val/a.jpg", ["found-image"])


@pytest.mark.parametrize("name", ["a.jpg", "other/a.jpg", "B.JPG", "c"])
def test_an_ambiguous_name_is_a_fault_that_names_both(tmp_path, name):
    touch(tmp_path, "one/a.jpg", "two/a.jpg", "images/b.jpg", "images/B.jpg", "images/c.png", "images/c.jpg")
    parsed = ParsedDataset(tmp_path, "coco")
    ImageIndex(parsed).find(name, tmp_path / "images", "record 1")
    (fault,) = parsed.faults
    stem = Path(name).stem.lower()
    files = {"a": ("one/a.jpg", "two/a.jpg"), "b": ("b.jpg", "B.jpg"), "c": ("c.jpg", "c.png")}[stem]
    assert fault.kind == "ambiguous-image"
    assert all(file in fault.what for file in files)


def test_one_file_behind_two_paths_is_not_ambiguous(tmp_path):
    touch(tmp_path, "one/a.jpg")
    (tmp_path / "two").mkdir()
    os.link(tmp_path / "one/a.jpg", tmp_path / "two/a.jpg")
    assert find(tmp_path, "a.jpg") == ("one/a.jpg", ["found-image"])


@pytest.mark.parametrize("name", ["c.jpg", "a.png", "._a.jpg", "", ".", "..", "/", "%00.jpg", "x" * 5000, "\ud800.jpg"])
def test_what_is_missing_is_said_without_naming_folders_that_do_not_exist(tmp_path, name):
    touch(tmp_path, "images/a.jpg", "__MACOSX/images/._a.jpg", "__MACOSX/c.jpg", ".trash/c.jpg")
    parsed = ParsedDataset(tmp_path, "coco")
    ImageIndex(parsed).find(name, tmp_path / "no" / "such", "record 1")
    (fault,) = parsed.faults
    assert fault.kind == "missing-image"
    assert "no/such" not in fault.what
    assert str(tmp_path) in fault.what


def test_what_is_missing_may_have_another_ending(tmp_path):
    touch(tmp_path, "images/a.jpg")
    parsed = ParsedDataset(tmp_path, "coco")
    ImageIndex(parsed).find("A.png", tmp_path / "images", "record 1")
    assert parsed.faults[0].what.endswith("; images/a.jpg has another ending")


def test_a_file_that_another_record_names_is_not_taken(tmp_path):
    touch(tmp_path, "train/5.jpg", "val/6.jpg")
    parsed = ParsedDataset(tmp_path, "coco")
    index = ImageIndex(parsed)
    for split in ("val", "train"):
        path = index.find("5.jpg", tmp_path / split, split)
        parsed.splits[split] = [ParsedImage(path, 1, 1, 1, split)]
    index.finish()
    missing = [fault for fault in parsed.faults if fault.kind == "missing-image"]
    assert [fault.where for fault in missing] == ["val"]
    assert "train/5.jpg" in missing[0].what


def test_one_note_for_many_images(tmp_path):
    touch(tmp_path, *(f"images/{i}.jpg" for i in range(5)))
    parsed = ParsedDataset(tmp_path, "coco")
    index = ImageIndex(parsed)
    paths = [index.find(f"x\\{i}.jpg", tmp_path, "") for i in range(5)]
    parsed.splits["all"] = [ParsedImage(path, 1, 1, 1, "") for path in paths]
    index.finish()
    (fault,) = parsed.faults
    assert fault.what.startswith("5 images")


def test_links_are_followed_once_and_not_in_circles(tmp_path):
    touch(tmp_path, "set/images/train/a.jpg", "set/images/val/b.jpg", "store/c.jpg")
    (tmp_path / "set/images/train/cam").symlink_to(tmp_path / "store")
    (tmp_path / "set/images/train/again").symlink_to(tmp_path / "store")
    (tmp_path / "set/images/train/up").symlink_to(tmp_path / "set")
    (tmp_path / "set/images/train/gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "set/images/train/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    train = tmp_path / "set/images/train"
    assert list(walk(train)) == [(str(train), ["a.jpg"]), (str(train / "again"), ["c.jpg"])]


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("a.jpg", "a.jpg"),
        ("./a/../b.jpg", "a/b.jpg"),
        ("c:x.jpg", "x.jpg"),
        ("C:/x.jpg", "x.jpg"),
        ("gs://b/x.jpg", "x.jpg"),
        ("what?.jpg", "what?.jpg"),
        ("images%5Ca.jpg", "images/a.jpg"),
    ],
)
def test_clean_name(name, clean):
    assert clean_name(name) == clean


def test_the_data_set_is_walked_once_for_all_names(tmp_path, monkeypatch):
    names = [f"{i:08}.jpg" for i in range(20_000)]
    walks = Mock(side_effect=lambda root: iter([(str(root / "images"), names)]))
    monkeypatch.setattr("boxwright.data.image_index.walk", walks)
    index = ImageIndex(ParsedDataset(tmp_path, "coco"))
    for name in names:
        assert index.match("D:\\set\\" + name, tmp_path / "images")
    assert walks.call_count == 1
