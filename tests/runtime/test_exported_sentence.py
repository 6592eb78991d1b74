import json

import numpy as np
import pytest

from boxwright.config import UserError
from boxwright.runtime.sequence_reader import Sentence, TokenReader, given_arrays, told, wanted_array
from boxwright.runtime.sequence_types import StreamObject, StreamToken

LANGUAGE = TokenReader(("y1", "x1", "y2", "x2", "class"), {5: "cat", 6: "dog", 7: "noise"}, end=0, objects=3)
BOXES = np.array([[1, 2, 3, 4], [10, 20, 30, 40], [0, 0, 9, 9]], np.float32)
NAMES = ("cat", "dog")


def said(words, order=(1, 0, 2)):
    words = np.array(words)
    return Sentence(
        BOXES, np.array([0.9, 0.5, 0.0]), np.array([1, 0, 0]), np.array(order), words, np.log(0.5) + 0.0 * words
    )


def test_objects_come_in_the_order_of_the_sentence():
    parts = list(told(said([[9, 9, 9, 9, 5], [9, 9, 9, 9, 6], [9, 9, 9, 9, 7]]), LANGUAGE, [], NAMES))
    objects = [part for part in parts if isinstance(part, StreamObject)]
    assert [(one.number, one.box, one.name) for one in objects] == [
        (0, (10, 20, 30, 40), "cat"), (1, (1, 2, 3, 4), "dog"), (2, (0, 0, 9, 9), "cat")
    ]  # fmt: skip
    assert objects[1].score == pytest.approx(0.9)
    assert parts[:5] == [
        StreamToken(0, slot, text, pytest.approx(0.5))
        for slot, text in [("y1", "20"), ("x1", "10"), ("y2", "40"), ("x2", "30"), ("class", "cat")]
    ]
    assert parts[-2].text == "noise"


def test_nothing_is_told_behind_the_end():
    parts = list(told(said([[9, 9, 9, 9, 5], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]), LANGUAGE, [], NAMES))
    assert [part.slot for part in parts if isinstance(part, StreamToken)][-1] == "end"
    assert [part.number for part in parts if isinstance(part, StreamObject)] == [0]


def test_given_objects_are_told_as_they_were_given():
    known = [(1, (3.0, 4.0, 5.0, 6.0))]
    parts = list(told(said([[9, 9, 9, 9, 6], [9, 9, 9, 9, 5], [9, 9, 9, 9, 5]]), LANGUAGE, known, NAMES))
    assert parts[5] == StreamObject(0, (3.0, 4.0, 5.0, 6.0), 1, "dog", 1.0, given=True)
    assert [part.given for part in parts] == [True] * 6 + [False] * 12


def test_given_objects_as_arrays():
    arrays = given_arrays([[], [(1, (3.0, 4.0, 5.0, 6.0))]], 3)
    assert arrays["given_boxes"].tolist() == [[[0, 0, 0, 0]], [[3, 4, 5, 6]]]
    assert arrays["given_labels"].tolist() == [[-1], [1]]
    assert given_arrays([[]], 3)["given_labels"].tolist() == [[-1]]
    with pytest.raises(UserError, match="2 objects are given, and a sentence holds 2"):
        given_arrays([[(0, (0.0, 0.0, 1.0, 1.0))] * 2], 2)


def test_wanted_classes_as_an_array():
    assert wanted_array(None, NAMES) == {}
    assert wanted_array([1], NAMES)["wanted_classes"].tolist() == [False, True]


def test_a_language_is_read_from_json():
    text = json.dumps({"slots": LANGUAGE.slots, "classes": LANGUAGE.classes, "end": 0, "objects": 3})
    assert TokenReader.from_json(text) == LANGUAGE
    with pytest.raises(KeyError):
        TokenReader.from_json("{}")
