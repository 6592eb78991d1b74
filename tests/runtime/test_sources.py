"""What a source names, and the errors where it names nothing."""

from pathlib import Path

import pytest

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
        ("shots/notes.md", "is not an image"),
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
