"""What a source names, and the errors where it names nothing."""

import os
from pathlib import Path

import pytest
from PIL import Image

from boxwright.config import UserError
from boxwright.runtime.sources import collect, short_names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.md", ".hidden.jpg", "sub/c.webp", "sub/deep/d.jpeg", ".cache/e.jpg"):
        file = tmp_path / "shots" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path / "shots"


def names(paths: list[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def test_a_folder_with_its_subfolders(folder: Path) -> None:
    assert names(collect(folder), folder) == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.jpeg"]


def test_a_file(folder: Path) -> None:
    assert collect(str(folder / "b.jpg")) == [folder / "b.jpg"]


def test_globs(folder: Path) -> None:
    assert names(collect(f"{folder}/*"), folder) == ["a.PNG", "b.jpg"]
    assert names(collect(f"{folder}/**/*.jp*g"), folder) == ["b.jpg", "sub/deep/d.jpeg"]


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    file = tmp_path / "shot[1].jpg"
    file.touch()
    assert collect(file) == [file]


def test_a_list_keeps_its_order_and_names_each_image_once(folder: Path) -> None:
    listing = folder / "list.txt"
    listing.write_text(f"# two\nsub/c.webp\n\n{folder / 'b.jpg'}\nsub/c.webp\nmissing.jpg\n", encoding="utf-8-sig")
    assert names(collect(listing), folder) == ["sub/c.webp", "b.jpg", "missing.jpg"]


def test_a_list_that_is_no_text(folder: Path) -> None:
    (folder / "list.txt").write_bytes(b"\xff\xfe\xff\x00")
    with pytest.raises(UserError, match="as a list of paths"):
        collect(folder / "list.txt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "no file or folder"),
        ("nowhere/*.jpg", "no image found by the pattern"),
        ("shots/notes.md", "is not an image that can be read, .*; unpack it first"),
        ("empty", "no image found in the folder"),
        ("empty.txt", "no image found named in"),
    ],
)
def test_nothing_found(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    monkeypatch.chdir(folder.parent)
    Path("empty").mkdir()
    Path("empty.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=message):
        collect(source)


def test_short_names_differ_where_paths_do(tmp_path: Path) -> None:
    assert short_names([tmp_path / "a/x.jpg", tmp_path / "b/x.jpg"]) == ["a/x.jpg", "b/x.jpg"]
    assert short_names([tmp_path / "a/x.jpg"]) == ["x.jpg"]


def test_a_named_file_of_another_ending_is_an_image_if_it_can_be_read(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "a.photo", format="PNG")
    assert collect(tmp_path / "a.photo") == [tmp_path / "a.photo"]
    (tmp_path / "b.photo").write_text("no")
    with pytest.raises(UserError, match="is not an image"):
        collect(tmp_path / "b.photo")


def test_a_list_may_name_files_that_are_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9.jpg\n\xc3\xa9.jpg\n")
    assert [os.fsencode(path.name) for path in collect(tmp_path / "list.txt")] == [b"caf\xe9.jpg", b"\xc3\xa9.jpg"]
