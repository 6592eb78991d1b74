"""The verb: everything is written, nothing is overwritten, a bad image stops no other."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxwright.config import UserError
from boxwright.inference import job as module
from boxwright.inference.predict import predict
from boxwright.inference.predictor import Predictor
from boxwright.thresholds import Thresholds
from boxwright.types import Detector

SIZE, BOX = (256, 128), (64, 32, 192, 96)


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch, white_boxes: Detector) -> None:
    monkeypatch.setattr(module, "open_detector", lambda *_: Predictor(white_boxes))


@pytest.fixture
def shots(paint: Callable[..., Path], tmp_path: Path) -> Path:
    folder = tmp_path / "shots"
    paint(folder / "a" / "x.jpg", SIZE, BOX)
    paint(folder / "b" / "x.jpg", SIZE, None)
    paint(folder / "b" / "x.png", SIZE, BOX)
    paint(folder / "b" / "x.bmp", SIZE, BOX)
    return folder


def test_writes_pictures_json_and_csv(shots: Path, tmp_path: Path) -> None:
    summary = predict(Path("w"), str(shots), tmp_path / "out", batch_size=2)
    assert (summary.images, summary.objects, summary.exit_code) == (4, {"box": 3}, 0)
    overlays = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert overlays == [
        "overlays/a/x.jpg", "overlays/b/x.bmp.jpg", "overlays/b/x.jpg", "overlays/b/x.png",
        "predictions.csv", "predictions.json",
    ]  # fmt: skip
    for name in overlays[:4]:
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.format == ("PNG" if name.endswith("png") else "JPEG")

    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [image["file_name"] for image in written["images"]] == ["a/x.jpg", "b/x.bmp", "b/x.jpg", "b/x.png"]
    assert written["categories"] == [{"id": 1, "name": "box"}, {"id": 2, "name": "other"}]
    assert [a["image_id"] for a in written["annotations"]] == [1, 2, 4]
    assert [a["id"] for a in written["annotations"]] == [1, 2, 3]
    np.testing.assert_allclose(written["annotations"][1]["bbox"], [64, 32, 128, 64], atol=4.1)
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["label"]) for row in rows] == [("a/x.jpg", "box"), ("b/x.bmp", "box"), ("b/x.png", "box")]
    np.testing.assert_allclose([float(rows[1][key]) for key in ("x1", "y1", "x2", "y2")], BOX, atol=4.1)
    assert float(rows[1]["score"]) == pytest.approx(0.9)


def test_it_says_which_scores_count(shots: Path, tmp_path: Path, white_boxes: Detector, capsys) -> None:
    def told(threshold: float | None = None) -> tuple[int, str]:
        summary = predict(Path("w"), str(shots), tmp_path / "out", threshold, overlays=False)
        return summary.objects.total(), capsys.readouterr().out.splitlines()[0]

    assert told() == (3, "score over 0.5 (the detector stores no threshold)")
    white_boxes.card = Thresholds(0.3, {"box": 0.95}, "9 images").to_card()
    assert told() == (0, "score over box 0.950, other 0.300 (stored; chosen on 9 images)")
    assert told(0.2) == (3, "score over 0.2 (as asked)")


def test_the_json_is_a_data_set(shots: Path, tmp_path: Path) -> None:
    from boxwright.data.read import read

    predict(Path("w"), str(shots), tmp_path / "out", overlays=False)
    (tmp_path / "out" / "predictions.json").rename(shots / "annotations.json")
    dataset = read(shots)
    assert dataset.names == ("box", "other")
    assert sum(len(record.boxes_N4) for record in dataset.splits["all"]) == 3


def test_label_files_of_yolo(shots: Path, tmp_path: Path) -> None:
    predict(Path("w"), str(shots), tmp_path / "out", overlays=False, save="txt")
    labels = {file.relative_to(tmp_path / "out/labels").as_posix(): file for file in (tmp_path / "out").rglob("*.txt")}
    assert sorted(labels) == ["a/x.txt", "b/x.bmp.txt", "b/x.jpg.txt", "b/x.png.txt"]
    assert labels["b/x.jpg.txt"].read_text() == ""
    label, *box = labels["a/x.txt"].read_text().split()
    assert label == "0"
    np.testing.assert_allclose([float(value) for value in box], [0.5, 0.5, 0.5, 0.5], atol=0.05)
    with pytest.raises(UserError, match="--save is txt, YOLO's label files, not 'xml'"):
        predict(Path("w"), str(shots), tmp_path / "out", save="xml")  # type: ignore[arg-type]


def test_without_overlays(shots: Path, tmp_path: Path) -> None:
    predict(Path("w"), str(shots), tmp_path / "out", overlays=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["predictions.csv", "predictions.json"]


def test_nothing_found_in_any_image_is_still_json(paint: Callable[..., Path], tmp_path: Path) -> None:
    paint(tmp_path / "shots/x.png", SIZE, None)
    predict(Path("w"), str(tmp_path / "shots"), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (len(written["images"]), written["annotations"]) == (1, [])


def test_a_bad_image_is_named_and_stops_no_other(
    shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shots / "a" / "broken [1].jpg").write_bytes((shots / "a" / "x.jpg").read_bytes()[:300])
    summary = predict(Path("w"), str(shots), tmp_path / "out")
    assert (summary.images, len(summary.skipped), summary.exit_code) == (4, 1, 1)
    assert "broken [1].jpg" in capsys.readouterr().out


def test_earlier_overlays_are_no_source(shots: Path) -> None:
    assert predict(Path("w"), str(shots), shots / "out").images == 4
    assert predict(Path("w"), str(shots), shots / "out").images == 4


def test_a_large_jpeg_is_drawn_at_its_own_size(paint: Callable[..., Path], tmp_path: Path) -> None:
    path = paint(tmp_path / "large.jpg", (2000, 1000), (500, 250, 1500, 750))
    predict(Path("w"), str(path), tmp_path / "out")
    with Image.open(tmp_path / "out/overlays/large.jpg") as picture:
        assert picture.size == (2000, 1000)


def test_an_interrupted_run_leaves_what_was_there(shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    predict(Path("w"), str(shots), out)
    before = (out / "predictions.json").read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict(Path("w"), str(shots), out)
    assert (out / "predictions.json").read_bytes() == before
    assert sorted(p.name for p in out.iterdir()) == ["overlays", "predictions.csv", "predictions.json"]


def test_a_folder_that_cannot_be_written(shots: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="can't be written"):
        predict(Path("w"), str(shots), tmp_path / "out")
