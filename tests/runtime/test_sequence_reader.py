"""Tokens become texts and objects, from numbers alone."""

import numpy as np
import pytest

from boxwright.runtime.sequence_reader import ObjectTokens, TokenFormat, read_tokens
from boxwright.runtime.sequence_types import StreamObject, StreamToken

NAMES = ("cat", "dog")
FORM = TokenFormat(("y1", "x1", "y2", "x2", "class"), {5: "cat", 6: "dog", 7: "noise"}, end=0, objects=3)
CAT = ObjectTokens(np.array([9, 9, 9, 9, 5]), np.log(np.full(5, 0.5)), (10.0, 20.0, 30.0, 40.0), 0, 0.5)
DOG = ObjectTokens(np.array([9, 9, 9, 9, 6]), np.log(np.full(5, 0.5)), (1.0, 2.0, 3.0, 4.0), 1, 0.9)
ENDED = CAT._replace(tokens_S=np.zeros(5, np.int64))


def read(*objects, form=FORM, given=()):
    return list(read_tokens(objects, form, NAMES, given))


def test_tokens_come_before_their_object():
    parts = read(CAT, DOG._replace(tokens_S=np.array([9, 9, 9, 9, 7])))
    assert [part for part in parts if isinstance(part, StreamObject)] == [
        StreamObject(0, CAT.box, 0, "cat", 0.5), StreamObject(1, DOG.box, 1, "dog", 0.9)
    ]  # fmt: skip
    assert parts[:5] == [
        StreamToken(0, slot, text, pytest.approx(0.5))
        for slot, text in [("y1", "20"), ("x1", "10"), ("y2", "40"), ("x2", "30"), ("class", "cat")]
    ]
    assert parts[-2].text == "noise"


def test_nothing_follows_the_end():
    parts = read(CAT, ENDED, DOG)
    assert [part.slot for part in parts if isinstance(part, StreamToken)][-1] == "end"
    assert [part.number for part in parts if isinstance(part, StreamObject)] == [0]


def test_given_objects_are_passed_on_as_they_were_given():
    parts = read(DOG, CAT, CAT, given=[(1, (3.0, 4.0, 5.0, 6.0))])
    assert parts[5] == StreamObject(0, (3.0, 4.0, 5.0, 6.0), 1, "dog", 1.0, given=True)
    assert [part.given for part in parts] == [True] * 6 + [False] * 12
    assert [part.text for part in parts[:4]] == ["4", "3", "6", "5"]


def test_a_side_has_the_coarse_text_until_a_second_token_of_its_slot():
    form = TokenFormat(("class", "x1 y1", "x1 y1", "x2 y2", "x2 y2"), {5: "cat"}, end=None, objects=3)
    patches = CAT._replace(
        tokens_S=np.array([5, 9, 9, 9, 9]), spelled=(11.0, 21.0, 29.0, 39.0), coarse=(8.0, 16.0, 24.0, 32.0)
    )
    assert [part.text for part in read(patches, form=form)[:5]] == ["cat", "8 16", "11 21", "24 32", "29 39"]


def test_an_object_is_taken_only_when_it_is_needed():
    taken = []
    stream = read_tokens((taken.append(one) or one for one in (CAT, DOG)), FORM, NAMES, ())
    for _ in range(6):
        next(stream)
    assert len(taken) == 1


def test_a_format_is_stored_as_json():
    assert TokenFormat.from_json(FORM.to_json()) == FORM
    with pytest.raises(KeyError):
        TokenFormat.from_json("{}")
