"""What comes out of a cache is what was on disk; whatever interrupts its making leaves nothing half-made."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensordict import TensorDict

from boxwright.config import UserError
from boxwright.data import cache as cache_module
from boxwright.data.cache import Cache, build, default_folder
from boxwright.data.records import Record
from boxwright.images import fit, open_image
from boxwright.types import Batch
from helpers import image_files as samples

SIDE = 48


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    folder = tmp_path / "images"
    folder.mkdir()
    return samples.records(folder, 10)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def made(records: list[Record], home: Path, mode: str = "pixels", side: int = SIDE) -> Cache:
    return build(records, side, mode=mode, folder=home, quiet=True)


def test_equal_to_direct_decoding(records: list[Record], home: Path) -> None:
    cache = made(records, home)
    assert len(cache) == 10
    batch = cache.batch([7, 0, 3, 3])
    assert batch.images_BCHW.dtype == torch.uint8
    assert batch.index_B.tolist() == [7, 0, 3, 3]
    for i, position in enumerate([7, 0, 3, 3]):
        record = records[position]
        canvas_SS3, size = fit(open_image(record.path), SIDE)
        np.testing.assert_array_equal(batch.images_BCHW[i].permute(1, 2, 0).numpy(), canvas_SS3)
        assert tuple(batch.sizes_B2[i].tolist()) == size
        assert batch.originals_B2[i].tolist() == [record.height, record.width]
        count = len(record.labels_N)
        assert batch.valid_BN[i].tolist() == [True] * count + [False] * (3 - count)
        assert batch.labels_BN[i, :count].tolist() == record.labels_N.tolist()
        back = batch.boxes_BN4[i, :count].numpy() * SIDE / np.array(size[::-1] * 2)
        np.testing.assert_allclose(back * np.array([record.width, record.height] * 2), record.boxes_N4, atol=1e-3)
        assert not batch.boxes_BN4[i, count:].any()
        assert not batch.labels_BN[i, count:].any()


def test_a_batch_is_padded_to_its_own_most_objects(records: list[Record], home: Path) -> None:
    cache = made(records, home)
    assert cache.batch([0, 4]).valid_BN.tolist() == [[False], [False]]
    assert cache.batch([0, 1]).boxes_BN4.shape == (2, 1, 4)
    assert cache.batch(torch.tensor([3, 1])).boxes_BN4.shape == (2, 3, 4)


def test_a_data_set_without_any_object(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "a.png"
    samples.noise(20, 20).save(path)
    batch = made([samples.record(path)], home).batch([0])
    assert not batch.valid_BN.any()
    assert batch.boxes_BN4.shape == (1, 1, 4)


def test_ignored_boxes_are_left_out_and_the_others_clipped(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"
    samples.noise(40, 20).save(path)
    boxes = [[1, 1, 5, 5], [-10, -10, 10, 10], [38, 18, 90, 90], [50, 5, 60, 9], [9, 9, 3, 3], [4, np.nan, 9, 9]]
    record = samples.record(path, boxes, ignore=[True, False, False, False, False, False])
    batch = build([record], 40, folder=home).batch([0])
    assert batch.valid_BN.tolist() == [[True, True]]
    assert batch.labels_BN.tolist() == [[1, 2]]
    torch.testing.assert_close(batch.boxes_BN4[0] * 40, torch.tensor([[0.0, 0, 10, 10], [38, 18, 40, 20]]))
    assert "3 boxes without area" in capsys.readouterr().out


def test_an_image_resized_after_annotation_keeps_its_boxes_in_place(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "a.png"
    samples.noise(40, 20).save(path)
    record = replace(samples.record(path, [[8, 8, 80, 40]]), width=80, height=40)
    torch.testing.assert_close(
        made([record], home, side=40).batch([0]).boxes_BN4[0, 0] * 40, torch.tensor([4.0, 4, 40, 20])
    )


def test_jpeg_mode_is_close_to_pixels_and_smaller(records: list[Record], home: Path) -> None:
    pixels, jpeg = made(records, home), made(records, home, "jpeg")
    every = range(10)
    a, b = pixels.batch(every), jpeg.batch(every)
    assert (a.images_BCHW.int() - b.images_BCHW.int()).abs().float().mean() < 2.5
    for field in fields(Batch):
        if field.name != "images_BCHW":
            assert torch.equal(getattr(a, field.name), getattr(b, field.name))
    assert (jpeg.folder / "images.bin").stat().st_size < (pixels.folder / "images.bin").stat().st_size


def test_found_again_without_decoding(records: list[Record], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(records, home)
    monkeypatch.setattr(cache_module, "write_images", None)
    again = made(records, home, "auto")
    assert again.folder == first.folder
    assert torch.equal(again.batch([2]).images_BCHW, first.batch([2]).images_BCHW)


def test_whatever_decides_the_content_is_in_the_key(records: list[Record], home: Path) -> None:
    folders = [made(records, home).folder, made(records, home, side=32).folder, made(records[:5], home).folder]
    moved = [
        replace(records[0], boxes_N4=np.array([[1.0, 1, 9, 9]]), labels_N=np.array([0]), ignore_N=np.array([False]))
    ]
    folders.append(made(moved + records[1:], home).folder)
    os.utime(records[0].path, ns=(0, 0))
    folders.append(made(records, home).folder)
    assert len(set(folders)) == 5


def test_images_that_cannot_be_used_are_one_error(records: list[Record], home: Path) -> None:
    records[2].path.write_bytes(b"")
    records[5].path.write_bytes(records[5].path.read_bytes()[:200])
    records[8] = replace(records[8], width=999)
    with pytest.raises(UserError, match=r"3 of 10 images") as caught:
        made(records, home)
    message = str(caught.value)
    assert all(str(records[i].path) in message for i in (2, 5, 8))
    assert "boxwright check" in message
    assert list(home.iterdir()) == []


def test_missing_images_are_one_error_before_anything_is_decoded(records: list[Record], home: Path) -> None:
    records[1].path.unlink()
    records[4].path.unlink()
    with pytest.raises(UserError, match=r"2 of 10 images") as caught:
        made(records, home)
    assert all(str(records[i].path) in str(caught.value) for i in (1, 4))
    assert not home.exists()


def test_no_images(home: Path) -> None:
    with pytest.raises(UserError, match="no images"):
        made([], home)


def disk(free: int):
    return lambda _: type("Usage", (), {"free": free})()


def test_no_room_names_the_bytes_and_the_mend(
    records: list[Record], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", disk(1000))
    with pytest.raises(UserError, match=r"69,120 bytes .* 1,000 free.*--cache jpeg"):
        made(records, home)
    assert list(home.iterdir()) == []


def test_a_disk_that_fills_up_while_building(
    records: list[Record], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "write_images", full)
    with pytest.raises(UserError, match="the cache needs 69,120 bytes"):
        made(records, home)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "memory", "expected"), [(10**9, 10**9, "pixels"), (100_000, 10**9, "jpeg"), (10**9, 100_000, "jpeg")]
)
def test_auto_chooses_by_disk_and_memory_and_says_why(
    records: list[Record],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free: int,
    memory: int,
    expected: str,
) -> None:
    monkeypatch.setattr("shutil.disk_usage", disk(free))
    monkeypatch.setattr(cache_module, "_memory", lambda: memory)
    assert build(records, SIDE, folder=home, purpose="training").mode == expected
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Cache of {expected}" in printed
    assert "B for training in" in printed
    assert ("half of the memory" in printed) == (memory == 100_000 or expected == "pixels")


def test_a_folder_that_cannot_be_written(records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written to .*BOXWRIGHT_CACHE"):
        made(records, tmp_path / "file" / "cache")


def test_a_cache_cut_short_is_built_again(records: list[Record], home: Path) -> None:
    first = made(records, home)
    expected = first.batch([3]).images_BCHW
    with (first.folder / "images.bin").open("r+b") as file:
        file.truncate(1000)
    assert torch.equal(made(records, home).batch([3]).images_BCHW, expected)
    (first.folder / "cache.json").write_text("{")
    assert torch.equal(made(records, home).batch([3]).images_BCHW, expected)


def test_where_caches_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"
    monkeypatch.delenv("BOXWRIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "boxwright"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "boxwright"


BUILDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from helpers import image_files as samples
from boxwright.data import cache_build
from boxwright.data.cache import build
folder, home, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
records = [samples.record(path, [[1, 1, 20, 20]]) for path in sorted(folder.glob("*.png"))]
slowly = cache_build.fit_image
def fitted(*args):
    time.sleep(pause)
    return slowly(*args)
cache_build.fit_image = fitted
print("ready", flush=True)
cache = build(records, 48, mode="pixels", folder=home, quiet=True)
print(int(cache.batch(range(len(cache))).images_BCHW.sum()))
"""


def builder(records: list[Record], home: Path, pause: float) -> subprocess.Popen:
    arguments = [str(records[0].path.parent), str(home), str(pause), str(Path(samples.__file__).parents[1])]
    return subprocess.Popen([sys.executable, "-c", BUILDER, *arguments], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_half_way_leaves_nothing_that_matters(records: list[Record], home: Path) -> None:
    process = builder(records, home, pause=60)
    deadline = time.monotonic() + 60
    while not list(home.glob(".building-*/images.bin")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path.name.startswith(".building-") for path in home.iterdir()] == [True]
    cache = made(records, home)
    assert list(home.iterdir()) == [cache.folder]
    np.testing.assert_array_equal(
        cache.batch([0]).images_BCHW[0].permute(1, 2, 0).numpy(), fit(open_image(records[0].path), SIDE)[0]
    )


@pytest.mark.slow
def test_two_builders_at_once_end_with_one_cache(records: list[Record], home: Path) -> None:
    processes = [builder(records, home, pause=0.1) for _ in range(2)]
    sums = [process.communicate(timeout=600)[0].split()[-1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sums[0] == sums[1]
    assert len(list(home.iterdir())) == 1


def test_the_loser_adopts_the_winners_cache(records: list[Record], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process finishes between our decoding and our renaming."""
    other = {}
    write = cache_module.write_images

    def late(*args: object) -> object:
        written = write(*args)
        if not other:
            other["cache"] = None
            other["cache"] = made(records, home)
        return written

    monkeypatch.setattr(cache_module, "write_images", late)
    assert made(records, home).folder == other["cache"].folder
    assert len(list(home.iterdir())) == 1


def test_abandoned_folders_of_other_machines_go_after_a_day(records: list[Record], home: Path) -> None:
    home.mkdir()
    old, new = home / ".building-elsewhere-1-abcd", home / ".building-elsewhere-2-abcd"
    old.mkdir()
    new.mkdir()
    os.utime(old, (0, 0))
    made(records, home)
    assert not old.exists()
    assert new.exists()


def test_an_image_of_another_shape_than_annotated_names_both(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (60, 40)).save(path)
    with pytest.raises(UserError, match=r"60 x 40, its annotation says 40 x 60"):
        made([replace(samples.record(path), width=40, height=60)], home)


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def bits(file: Path, count: int) -> list[int]:
    return np.random.default_rng(0).integers(0, 8 * file.stat().st_size, count).tolist()


@pytest.mark.parametrize("mode", ["pixels", "jpeg"])
def test_a_flipped_bit_of_an_image_is_found_when_it_is_read_and_mended(
    records: list[Record], home: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = made(records, home, mode)
    whole, file = cache.batch(range(10)).images_BCHW, cache.folder / "images.bin"
    content = file.read_bytes()
    for bit in bits(file, 20):
        flip(file, bit)
        assert torch.equal(made(records, home, mode).batch(range(10)).images_BCHW, whole)
        assert "images.bin is damaged" in capsys.readouterr().err
        assert file.read_bytes() == content


def test_a_damaged_image_whose_file_has_changed_is_an_error(records: list[Record], home: Path) -> None:
    cache = made(records, home)
    flip(cache.folder / "images.bin", 8)
    samples.noise(20, 20, seed=9).save(records[0].path)
    with pytest.raises(UserError, match=r"images.bin is damaged: .* is not what it was; remove .* built again"):
        replace(cache).batch([0])
    assert (replace(cache).batch([1]).images_BCHW >= 0).all()


def test_a_flipped_bit_elsewhere_makes_a_new_cache(
    records: list[Record], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = made(records, home)
    whole = cache.batch(range(10))
    for file in [cache.folder / "cache.json", *sorted((cache.folder / "targets").iterdir())]:
        for bit in bits(file, 2):
            flip(file, bit)
            again = build(records, SIDE, mode="pixels", folder=home).batch(range(10))
            assert all(torch.equal(getattr(again, field.name), getattr(whole, field.name)) for field in fields(Batch))
            damaged = "is damaged, and is built again" in capsys.readouterr().out
            assert damaged or file.name == "cache.json"  # where the name of a checksum may change
            if not damaged:
                flip(file, bit)


@pytest.mark.parametrize(
    "about",
    ["[]", "null", "3", '"x"', "{", '{"side": null}', '{"side": [], "images": 1, "bytes": 1}',
     '{"side": 1e400, "images": 10, "bytes": 9}', '{"side": -1, "images": -1, "bytes": -1, "mode": 3}', "[" * 9999],
)  # fmt: skip
def test_a_description_of_another_form_makes_a_new_cache(records: list[Record], home: Path, about: str) -> None:
    cache = made(records, home)
    (cache.folder / "cache.json").write_text(about)
    assert torch.equal(made(records, home).batch([0]).images_BCHW, cache.batch([0]).images_BCHW)


def test_a_cache_of_an_earlier_version_has_no_checksums(records: list[Record], home: Path) -> None:
    cache = made(records, home)
    whole = cache.batch([0]).images_BCHW
    about = json.loads((cache.folder / "cache.json").read_text())
    (cache.folder / "cache.json").write_text(
        json.dumps({name: about[name] for name in ("version", "mode", "side", "images", "bytes")})
    )
    TensorDict({key: value for key, value in cache.targets.items() if key != "crc32c_B"}, []).memmap(
        cache.folder / "targets"
    )
    flip(cache.folder / "images.bin", 0)
    again = made(records, home)
    assert again.folder == cache.folder
    assert again.sources == ""
    assert int((again.batch([0]).images_BCHW != whole).sum()) == 1


def test_the_checksum_of_the_files_tells_other_pixels(records: list[Record], home: Path) -> None:
    first = [made(records, home, mode).sources for mode in ("pixels", "jpeg")]
    assert first[0] == first[1]
    with Image.open(records[0].path) as image:
        other = Image.eval(image.convert("RGB"), lambda value: value ^ 1)
    other.save(records[0].path)
    assert made(records, home).sources != first[0]
