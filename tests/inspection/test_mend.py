"""The corrected copy: what can be mended in one way only is mended, the source stays as it is."""

import json
import shutil

import numpy as np
import pytest

from boxwright.config import UserError
from boxwright.data.read import read
from boxwright.inspection.check import check
from helpers import datasets as samples

NAN = float("nan")


def faulty(root):
    """A COCO folder with one of each fault that can be mended."""
    content = samples.coco_content(4)
    content["categories"].append({"id": 9, "name": "e\x1bmu"})
    content["images"].append({"id": 5, "file_name": "gone.jpg", "width": 40, "height": 30})
    rows = [
        [-4, 5, 10, 12],
        [30, 20, 20.5, 5],
        [9, 9, 0, 5],
        [1, NAN, 2, 3],
        [50, 50, 5, 5],
        [8, 8, 3, 3],
        [8, 8, 3, 3],
    ]
    content["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 3, "bbox": bbox} for i, bbox in enumerate(rows, 1)
    ]
    content["annotations"] += [
        {"id": 8, "image_id": 1, "category_id": 9, "bbox": [8, 8, 3, 3]},
        {"id": 9, "image_id": 5, "category_id": 3, "bbox": [8, 8, 3, 3]},
        {"id": 10, "image_id": 77, "category_id": 3, "bbox": [8, 8, 3, 3]},
        {"id": 11, "image_id": 3, "category_id": 3, "bbox": [8, 8, 3, 3]},
    ]
    samples.coco(root, content)
    (root / "images" / "gone.jpg").unlink()
    (root / "images" / "004.jpg").write_bytes(b"no image")
    return root


def contents(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_what_can_be_mended_is_mended_and_listed(tmp_path, capsys):
    root, out = faulty(tmp_path / "data"), tmp_path / "mended"
    before = contents(root)
    check(root, fix=out)
    assert contents(root) == before
    dataset = read(out)
    assert dataset.names == ("cat", "dog", "e mu")
    first, second, third = dataset.splits["all"]
    assert first.boxes_N4.tolist() == [[0, 5, 6, 17], [30, 20, 40, 25], [8, 8, 11, 11], [8, 8, 11, 11]]
    assert first.labels_N.tolist() == [0, 0, 0, 2]
    assert (len(second.boxes_N4), len(third.boxes_N4)) == (0, 1)
    report = check(out)
    assert {fault.kind for fault in report.faults} == {"background-image", "unused-class"}
    printed = capsys.readouterr().out
    for where, what in {
        "annotation 1:": "cut to (0, 5, 6, 17)", "annotation 3:": "no area", "annotation 4:": "no number",
        "annotation 5:": "outside the image", "annotation 7:": "the same box", "image 5 (gone.jpg)": "is missing",
        "image 4 (004.jpg)": "cannot be decoded", "annotation 10": "there is no image",
    }.items():  # fmt: skip
        assert any(where in line and what in line for line in printed.splitlines()), (where, what)
    assert "\x1b" not in printed


@pytest.mark.parametrize("write", [samples.coco, samples.voc, samples.yolo])
def test_correct_data_are_copied_as_they_are(tmp_path, write, capsys):
    root, out = write(tmp_path / "data"), tmp_path / "mended"
    check(root, fix=out)
    assert "with 0 changes" in capsys.readouterr().out
    before, after = read(root), read(out)
    assert (after.format, after.names, list(after.splits)) == (before.format, before.names, list(before.splits))
    for split, records in before.splits.items():
        for one, other in zip(records, after.splits[split], strict=True):
            assert np.allclose(one.boxes_N4, other.boxes_N4)
            assert one.path.read_bytes() == other.path.read_bytes()
            assert not one.path.samefile(other.path)


def test_a_fault_that_needs_a_person_stops_it(tmp_path):
    content = samples.coco_content()
    content["annotations"][0]["category_id"] = 99
    with pytest.raises(UserError, match=r"a person must decide: .*no category with the id 99"):
        check(samples.coco(tmp_path / "data", content), fix=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["data", "data/mended", ".", "full"])
def test_it_never_writes_into_the_source_or_over_files(tmp_path, place):
    root = samples.coco(tmp_path / "data")
    samples.write_json(tmp_path / "full" / "mine.json", {})
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"not empty|in the data set"):
        check(root, fix=tmp_path / place)
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    root = samples.coco(tmp_path / "data")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("boxwright.data.convert.shutil.copyfile", full)
    with pytest.raises(UserError, match="No space left"):
        check(root, fix=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_json_stays_one_object(tmp_path, capsys):
    check(faulty(tmp_path / "data"), json=True, fix=tmp_path / "out")
    assert json.loads(capsys.readouterr().out)["errors"] > 3


def test_an_archive_may_lie_beside_its_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", samples.coco(tmp_path / "source"))
    check(archive, out=tmp_path / "page.html", fix=tmp_path / "out")
    assert len(read(tmp_path / "out").splits["all"]) == 3
    assert "Data set data.zip" in (tmp_path / "page.html").read_text(encoding="utf-8")
