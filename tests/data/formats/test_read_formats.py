"""Every foreign format gives the same two images, without being told what it is."""

import random

import numpy as np
import pytest

from boxwright.config import UserError
from boxwright.data.formats import recognise
from boxwright.data.read import parse, read
from boxwright.inspection.check import check
from helpers import foreign_datasets as foreign
from helpers.datasets import image, write_json
from helpers.mutations import mutate


def boxes_by_stem(dataset, split):
    return {
        record.path.stem: [(dataset.names[k], *np.round(box, 5)) for k, box in zip(record.labels_N, record.boxes_N4)]  # noqa: B905
        for record in dataset.splits[split]
        if len(record.boxes_N4)
    }


@pytest.mark.parametrize("make", foreign.TWO_CLASSES, ids=lambda make: make.__name__)
def test_the_same_boxes_in_every_format(tmp_path, make):
    make(tmp_path)
    dataset, split = read(tmp_path), foreign.TWO_CLASSES[make]
    assert (list(dataset.splits), dataset.names) == ([split], ("cat", "dog"))
    expected = {stem: [(name, *box) for name, box in objects] for stem, objects in foreign.OBJECTS.items()}
    assert boxes_by_stem(dataset, split) == expected
    assert all(record.path.is_file() and (record.width, record.height) == (40, 30) for record in dataset.splits[split])


@pytest.mark.parametrize("make", foreign.ONE_CLASS, ids=lambda make: make.__name__)
def test_ignored_objects_of_benchmarks(tmp_path, make):
    make(tmp_path)
    split, name = foreign.ONE_CLASS[make]
    dataset = read(tmp_path)
    a = next(record for record in dataset.splits[split] if record.path.stem == "a")
    assert {dataset.names[label] for label in a.labels_N} == {name}
    assert a.boxes_N4.tolist() == [list(foreign.CAT), list(foreign.DOG)]
    assert a.ignore_N.tolist() == [False, True]


@pytest.mark.parametrize("make", [*foreign.TWO_CLASSES, *foreign.ONE_CLASS], ids=lambda make: make.__name__)
def test_check_finds_no_error(tmp_path, make, capsys):
    make(tmp_path)
    assert [str(fault) for fault in check(tmp_path).faults if fault.level == "error"] == []


@pytest.mark.parametrize("make", [foreign.cvat, foreign.kitti, foreign.bdd100k], ids=lambda make: make.__name__)
def test_what_is_no_box_is_counted(tmp_path, make):
    make(tmp_path)
    assert [fault.kind for fault in parse(tmp_path).faults].count("unused-object") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"shapes": []}, r"nearest is labelme JSON: x\.json has list `shapes` but no `imagePath`"),
        ([{"image": "a.jpg", "annotations": []}], r"nearest is CreateML JSON: .* but no `coordinates`"),
        ({"samples": []}, r"nearest is FiftyOne JSON: .* but no `bounding_box`"),
    ],
)
def test_an_unknown_format_names_the_nearest(tmp_path, content, message):
    image(tmp_path / "a.jpg")
    write_json(tmp_path / "x.json", content)
    with pytest.raises(UserError, match=message):
        parse(tmp_path)


def test_two_foreign_formats_are_an_error(tmp_path):
    foreign.labelme(tmp_path)
    foreign.kaggle_csv(tmp_path)
    with pytest.raises(UserError, match=r"2 formats at once: labelme JSON \(a\.json\) and CSV with a row per object"):
        parse(tmp_path)


def test_a_file_named_like_an_image_is_never_left_out(tmp_path):
    foreign.labelme(tmp_path)
    (tmp_path / "b.json").write_text("{")
    write_json(tmp_path / "notes.json", {"made": "by me"})
    kinds = [fault.kind for fault in parse(tmp_path).faults]
    assert kinds.count("broken-file") == 1
    assert kinds.count("unused-file") == 1


def test_tracks_of_a_video_are_refused_by_name(tmp_path):
    foreign.text(tmp_path / "annotations.xml", "<annotations><track id='0' label='cat'></track></annotations>")
    with pytest.raises(UserError, match="CVAT for images"):
        read(tmp_path)


def test_turned_rectangles(tmp_path):
    """A rectangle of 10 x 4 pixels, turned by 90 degrees: about its corner (Label Studio), about its centre (CVAT)."""
    image(tmp_path / "a.jpg")
    value = {"x": 50, "y": 20, "width": 25, "height": 100 * 4 / 30, "rotation": 90, "rectanglelabels": ["cat"]}
    region = {"original_width": 40, "original_height": 30, "value": value, "type": "rectanglelabels"}
    file = write_json(tmp_path / "x.json", [{"data": {"image": "a.jpg"}, "annotations": [{"result": [region]}]}])
    assert np.allclose(read(file).splits["all"][0].boxes_N4, [[16, 6, 20, 16]])
    box = '<box label="cat" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90"/>'
    xml = f'<annotations><image id="0" name="a.jpg" width="40" height="30">{box}</image></annotations>'
    foreign.text(tmp_path / "y.xml", xml)
    assert np.allclose(read(tmp_path / "y.xml").splits["all"][0].boxes_N4, [[13, 7, 17, 17]])


def test_a_table_without_classes_says_so(tmp_path):
    image(tmp_path / "a.jpg")
    foreign.text(tmp_path / "train.csv", 'image_id,width,height,bbox\na,40,30,"[1, 2, 3, 4]"\n')
    parsed = parse(tmp_path)
    assert parsed.names == ("object",)
    assert [fault.kind for fault in parsed.faults if fault.level == "warning"] == ["unnamed-class"]


def test_names_of_classes_in_metadata(tmp_path):
    foreign.open_images_csv(tmp_path)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "class-descriptions-boxable.csv").rename(tmp_path / "metadata" / "classes.csv")
    assert set(read(tmp_path).names) == {"cat", "dog"}


def test_formats_have_names_and_no_mark_is_empty():
    for format_ in recognise.FORMATS:
        assert format_.marks
        assert not any(recognise._has("", mark) for _, mark in format_.marks)


@pytest.mark.parametrize("make", [*foreign.TWO_CLASSES, *foreign.ONE_CLASS], ids=lambda make: make.__name__)
def test_mutated_files_give_a_clean_report_or_one_error(tmp_path, make, capsys):
    make(tmp_path)
    files = [f for f in sorted(tmp_path.rglob("*")) if f.is_file() and f.suffix.lower() not in (".jpg", ".png")]
    draw = random.Random(f"{make.__name__}8")
    for _ in range(20):
        file = draw.choice(files)
        before = file.read_bytes()
        file.write_bytes(mutate(before, draw))
        assert "\n" not in (error_of(read, tmp_path) + error_of(check, tmp_path))
        file.write_bytes(before)


def error_of(function, path) -> str:
    """The message of a `UserError`; other errors pass on and fail the test."""
    try:
        function(path)
    except UserError as error:
        return str(error)
    return ""
