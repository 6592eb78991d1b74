"""File names that are no UTF-8, and a C locale: nothing is lost, no traceback."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from boxwright.data.cache import build
from boxwright.data.convert import convert
from boxwright.data.read import read
from boxwright.files import name_as_text, name_on_disk
from helpers.datasets import coco, coco_content, image
from helpers.image_files import record
from helpers.onnx_files import white_boxes

NAMES = [b"caf\xe9.jpg", "\N{LATIN SMALL LETTER E WITH ACUTE}.jpg".encode(), b"plain.jpg"]
LOCALES = {
    "utf-8": {"LC_ALL": "C.UTF-8"},
    "c": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of these names."""
    path = tmp_path / "shots"
    path.mkdir()
    for name in NAMES:
        shot = Image.new("RGB", (64, 48), (20, 30, 40))
        shot.paste("white", (8, 8, 32, 32))
        try:
            shot.save(path / os.fsdecode(name))
        except OSError:
            pytest.skip("this file system takes only text")
    return path


def run(code: str, locale: str, **more: str) -> str:
    source = str(Path(__file__).parents[1] / "src")
    environment = {**os.environ, **LOCALES[locale], "PYTHONPATH": source, "PYTHONIOENCODING": "", **more}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode(errors="replace")


@pytest.mark.parametrize("locale", LOCALES)
def test_predict_writes_every_name(folder: Path, tmp_path: Path, locale: str) -> None:
    model, out = white_boxes(tmp_path / "model.onnx"), tmp_path / "out"
    (folder / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"no image")
    code = (
        "import sys; from boxwright.__main__ import main\n"
        f"code = main(['predict', {str(model)!r}, {str(folder)!r}, '--out', {str(out)!r}])\n"
        "sys.exit(code != 1)"  # 1: an image could not be read
    )
    assert "3 objects in 3 images" in run(code, locale)
    content = json.loads((out / "predictions.json").read_bytes())
    names = [row["file_name"] for row in content["images"]]
    assert {name.encode("utf-8", "surrogateescape") for name in names} == set(NAMES)
    rows = list(csv.DictReader((out / "predictions.csv").open(encoding="utf-8", newline="")))
    assert {row["file"] for row in rows} == {r"caf\udce9.jpg", "\N{LATIN SMALL LETTER E WITH ACUTE}.jpg", "plain.jpg"}
    assert {os.fsencode(file.name) for file in (out / "overlays").iterdir()} == set(NAMES)


def test_a_data_set_is_read_and_converted(tmp_path: Path) -> None:
    content = coco_content(2)
    content["images"][0]["file_name"] = "\N{LATIN SMALL LETTER E WITH ACUTE}.jpg"
    coco(tmp_path / "data", content)
    code = (
        "from pathlib import Path; from boxwright.data.read import read; from boxwright.data.convert import convert\n"
        f"home = Path({str(tmp_path)!r})\n"
        "records = read(home / 'data').splits['all']\n"
        "assert all(record.path.is_file() for record in records)\n"
        "for to in ('coco', 'voc', 'yolo', 'cvat', 'label-studio', 'huggingface'):\n"
        "    folder = convert(home / 'data', home / to, to)\n"
        "    assert len(next(iter(read(folder).splits.values()))) == 2, to"
    )
    run(code, "c")


def test_a_cache_holds_every_name(folder: Path, tmp_path: Path) -> None:
    records = [record(path) for path in sorted(folder.iterdir())]
    assert len(build(records, 32, folder=tmp_path / "cache", quiet=True)) == 3


@pytest.mark.parametrize("to", ["coco", "voc", "yolo", "cvat", "label-studio", "huggingface"])
def test_convert_writes_names_that_every_format_holds(tmp_path: Path, to: str) -> None:
    rows = "train: images/train\nnames: [cat]\n"
    name = os.fsdecode(b"caf\xe9")
    try:
        image(tmp_path / "data" / "images" / "train" / f"{name}.jpg")
    except OSError:
        pytest.skip("this file system takes only text")
    label = tmp_path / "data" / "labels" / "train" / f"{name}.txt"
    label.parent.mkdir(parents=True)
    label.write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data" / "data.yaml").write_text(rows)
    (before,) = read(tmp_path / "data").splits["train"]
    ((after,),) = read(convert(tmp_path / "data", tmp_path / "out", to)).splits.values()  # type: ignore[arg-type]
    assert after.path.name == "caf%E9.jpg"
    assert abs(after.boxes_N4 - before.boxes_N4).max() < 1e-6


def test_names_as_text_and_back() -> None:
    for name in NAMES:
        text = name.decode("utf-8", "surrogateescape")
        assert name_as_text(name_on_disk(text)) == text
    assert name_on_disk("\ud800") == "\ud800"
