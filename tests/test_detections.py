"""Detections are a sequence of objects, and turn into what other programs read."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from boxwright.config import UserError
from boxwright.detections import Detection, Detections

NAMES = ("cat", "dog", "bird")


def picture() -> Image.Image:
    return Image.new("RGB", (100, 50))


@pytest.fixture
def found() -> Detections:
    boxes = np.array([[10, 5, 30, 25], [0, 0, 100, 50], [40, 20, 60, 30]], np.float32)
    return Detections(boxes, np.array([0.9, 0.6, 0.3], np.float32), np.array([1, 0, 1]), NAMES, (100, 50), picture)


def test_it_is_a_sequence_of_objects(found):
    assert found[0] == Detection((10, 5, 30, 25), pytest.approx(0.9), 1, "dog")
    assert found[-1] == list(found)[2]
    assert [object.name for object in found] == ["dog", "cat", "dog"]
    assert (len(found), bool(found), bool(found[:0])) == (3, True, False)
    with pytest.raises(IndexError):
        found[3]


@given(st.data())
def test_choosing_is_that_of_a_list(data):
    n = data.draw(st.integers(0, 6))
    found = Detections(np.arange(4.0 * n).reshape(n, 4), np.linspace(1, 0, n), np.arange(n) % 3, NAMES, (9, 9))
    objects = list(found)
    part = data.draw(st.slices(n))
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    rows = data.draw(st.lists(st.integers(-n, n - 1), max_size=4)) if n else []
    assert list(found[part]) == objects[part]
    assert list(found[np.array(mask, bool)]) == [one for one, keep in zip(objects, mask, strict=True) if keep]
    assert list(found[rows]) == [objects[i] for i in rows]
    assert found[part].size == (9, 9)


@pytest.mark.parametrize("which", [[True, False], "cat", 0.5, np.zeros((3, 1), bool), None])
def test_what_chooses_nothing(found, which):
    with pytest.raises(UserError, match=r"cho[os]"):
        found[which]


def test_above_and_of(found):
    assert len(found[found.scores > 0.5]) == len(found.above(0.5)) == 2
    assert len(found.above([0.7, 0.2, 0.0])) == 2
    assert [object.name for object in found.of("cat", "bird")] == ["cat"]
    assert len(found.of(1)) == 2
    with pytest.raises(UserError, match="did you mean 'dog'"):
        found.of("dok")


def test_text_and_picture(found):
    assert repr(found) == "3 objects: dog 0.90, cat 0.60, dog 0.30"
    assert (repr(found[:1]), repr(found[:0])) == ("1 object: dog 0.90", "0 objects")
    assert found.plot().size == found.plot(picture()).size == (700, 350)
    assert found.above(0.5)._repr_png_().startswith(b"\x89PNG")
    alone = Detections(found.boxes, found.scores, found.labels, NAMES)
    assert alone._repr_png_() is None
    with pytest.raises(UserError, match=r"give it: found\.plot\(image\)"):
        alone.plot()


def test_it_crosses_processes(found):
    again = pickle.loads(pickle.dumps(found))
    assert list(again) == list(found)
    assert again.plot().size == (700, 350)


def test_as_plain_python(found):
    assert json.loads(found.to_json()) == found.to_dict()
    assert found.to_dict()["objects"][1] == {"name": "cat", "score": 0.6, "box": [0.0, 0.0, 100.0, 50.0]}
    assert (found.to_dict()["width"], found.to_dict()["height"]) == (100, 50)


def test_as_yolo(found):
    assert found.to_yolo().splitlines()[0] == "1 0.200000 0.300000 0.200000 0.400000 0.90000"
    assert found.to_yolo(scores=False).splitlines()[1] == "0 0.500000 0.500000 1.000000 1.000000"
    assert found[:0].to_yolo() == ""
    found.size = None
    assert found.to_yolo(size=(100, 50)).count("\n") == 3
    with pytest.raises(UserError, match=r"give size=\(width, height\)"):
        found.to_yolo()


def test_as_tables(found):
    pandas, supervision = pytest.importorskip("pandas"), pytest.importorskip("supervision")
    table = found.to_pandas()
    assert list(table.columns) == ["x1", "y1", "x2", "y2", "score", "label", "name"]
    assert table["name"].tolist() == ["dog", "cat", "dog"]
    assert isinstance(table, pandas.DataFrame)
    assert isinstance(found.to_supervision(), supervision.Detections)
    assert found.to_supervision().data["class_name"].tolist() == ["dog", "cat", "dog"]
