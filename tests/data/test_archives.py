"""A data set in an archive is read as its folder is, and nothing leaves the folder."""

import io
import random
import tarfile
import zipfile

import pytest

from boxwright.config import UserError
from boxwright.data import archives
from boxwright.data.read import read
from helpers import datasets as samples
from helpers import foreign_datasets as foreign


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "caches"))
    return tmp_path / "caches" / "unpacked"


def pack(folder, file):
    members = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for path in members:
                archive.write(path, path.relative_to(folder))
    else:
        with tarfile.open(file, "w:" + (file.suffix[1:] if file.suffix != ".tar" else "")) as archive:
            for path in members:
                archive.add(path, path.relative_to(folder))
    return file


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize(
    "make", [samples.coco, samples.voc, samples.yolo, foreign.kitti], ids=lambda make: make.__name__
)
def test_an_archive_is_read_as_its_folder(tmp_path, caches, ending, make):
    make(tmp_path / "data")
    file = pack(tmp_path / "data", tmp_path / f"data.{ending}")
    folder, packed = read(tmp_path / "data"), read(file)
    assert packed.names == folder.names
    for split, records in folder.splits.items():
        assert [r.path.name for r in packed.splits[split]] == [r.path.name for r in records]
        assert all((a.boxes_N4 == b.boxes_N4).all() for a, b in zip(packed.splits[split], records, strict=True))
    read(file)
    assert len(list(caches.iterdir())) == 1


@pytest.mark.parametrize(
    "name", ["../x.txt", "/tmp/x.txt", "a/../../x.txt", "..\\x.txt", "C:\\x.txt", "x" * 300 + ".txt"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_outside_the_folder_are_refused(tmp_path, caches, name, kind):
    file = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("good.txt", "1")
            archive.writestr(name, "2")
    else:
        with tarfile.open(file, "w") as archive:
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"2"))
    with pytest.raises(UserError, match=r"outside its folder|can't be written"):
        read(file)
    assert list(caches.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [file.name, "caches"]


def test_links_and_devices_are_left_out(tmp_path, caches):
    samples.coco(tmp_path / "data")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in sorted((tmp_path / "data").rglob("*.*")):
            archive.add(path, path.relative_to(tmp_path / "data"))
        for name, kind, target in (("images/z.jpg", tarfile.SYMTYPE, "/etc/passwd"), ("y.jpg", tarfile.CHRTYPE, "")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    read(tmp_path / "a.tar")
    names = {path.name for path in caches.rglob("*") if not path.is_dir()}
    assert names == {"annotations.json", "001.jpg", "002.jpg", "003.jpg"}


def test_a_bomb_is_refused(tmp_path, caches, monkeypatch):
    monkeypatch.setattr(archives, "MAX_SMALL", 10_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.json", b"0" * 10_000_000)
    with pytest.raises(UserError, match="far more than its size"):
        read(tmp_path / "a.zip")
    assert list(caches.iterdir()) == []


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_a_damaged_archive_is_one_error(tmp_path, ending):
    samples.coco(tmp_path / "data")
    content = pack(tmp_path / "data", tmp_path / f"data.{ending}").read_bytes()
    draw = random.Random(ending)
    for i in range(60):
        damaged = bytearray(content)
        for _ in range(draw.choice([1, 3, 30])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        file = tmp_path / f"{i}.{ending}"
        file.write_bytes(damaged[: draw.randrange(len(damaged))] if draw.random() < 0.3 else damaged)
        try:
            read(file)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most, not all, are errors
