"""Streams of tokens: their order, their texts, and that they hold the objects that `predict` returns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from boxwright.config import UserError
from boxwright.inference.predictor import Predictor
from boxwright.models.patchseq import PatchSeq, PatchSeqConfig
from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig
from boxwright.runtime import StreamObject, StreamToken

NAMES = ("cat", "dog", "fish")
PIX2SEQ = Pix2SeqConfig(
    backbone="test_efficientnet", image_size=64, encoder_layers=1, encoder_dim=32, encoder_hidden=64, encoder_heads=4,
    decoder_layers=2, decoder_dim=24, decoder_hidden=48, decoder_heads=3, max_objects=6, length=32, bins=50,
    first_coordinate=120, vocabulary=180,
)  # fmt: skip
PATCHSEQ = PatchSeqConfig(
    backbone="test_efficientnet", image_size=64, patch=16, encoder_layers=1, decoder_layers=2, dim=24, hidden=48,
    heads=3, max_objects=6,
)  # fmt: skip
COPYING = {"proposals": 20, "channels": 24, "depth": 1}
CONFIGS = {
    "noise": PIX2SEQ,
    "drawn": replace(PIX2SEQ, top_p=0.9),
    "free": replace(PIX2SEQ, grammar=False, noise=False),
    "beams": replace(PIX2SEQ, beams=2),
    "patches": PATCHSEQ,
    "patches and noise": replace(PATCHSEQ, noise=True),
    "whole patches": replace(PATCHSEQ, fine=0, noise=True),
    "copied": replace(PIX2SEQ, **COPYING),
    "copied by beams": replace(PIX2SEQ, **COPYING, beams=2),
    "copied without grammar": replace(PIX2SEQ, **COPYING, grammar=False),
    "copied and drawn": replace(PIX2SEQ, **COPYING, top_p=0.9, repeats=False),
    "copied patches": replace(PATCHSEQ, **COPYING, noise=True, fine=16),
}
IMAGE = np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8)
KNOWN = [("dog", (10, 20, 60, 70)), ("cat", [0, 0, 120, 80])]


def random_predictor(config: Pix2SeqConfig | PatchSeqConfig) -> Predictor:
    torch.manual_seed(0)
    kind = Pix2Seq if isinstance(config, Pix2SeqConfig) else PatchSeq
    detector = kind(config, NAMES, pretrained=False)
    if not config.proposals:
        torch.nn.init.normal_(detector.decoder.token_embedding, std=0.5)
    return Predictor(detector)


@pytest.fixture(params=CONFIGS)
def predictor(request) -> Predictor:
    return random_predictor(CONFIGS[request.param])


@pytest.mark.parametrize("given", [(), KNOWN])
def test_what_is_written_is_what_is_predicted(predictor, given):
    written = [one for one in predictor.stream_tokens(IMAGE, given) if isinstance(one, StreamObject) and not one.given]
    found = predictor.predict(IMAGE, threshold=0, given=given)
    written = sorted((one for one in written if one.score > 0), key=lambda one: -one.score)
    assert len(found) == len(written)
    np.testing.assert_allclose([one.score for one in written], found.scores_N, rtol=1e-5)
    np.testing.assert_allclose(np.array([one.box for one in written]).reshape(-1, 4), found.boxes_N4, rtol=1e-5)
    assert [one.label for one in written] == found.labels_N.tolist()
    assert all(one.name == NAMES[one.label] for one in written)


def test_an_object_is_told_word_by_word_then_whole(predictor):
    parts = list(predictor.stream_tokens(IMAGE))
    count = len(parts[: next(i for i, one in enumerate(parts) if isinstance(one, StreamObject))])
    for number in range(sum(isinstance(one, StreamObject) for one in parts)):
        *tokens, whole = parts[number * (count + 1) : (number + 1) * (count + 1)]
        assert isinstance(whole, StreamObject)
        assert {one.object for one in tokens} == {whole.number} == {number}
        assert all(0 < one.probability <= 1 for one in tokens)
        sides: dict[str, int] = {}
        for one in tokens:
            if one.slot != "class":
                sides |= zip(one.slot.split(), map(int, one.text.split()), strict=True)
        x1, x2 = sorted((sides["x1"], sides["x2"]))
        y1, y2 = sorted((sides["y1"], sides["y2"]))
        np.testing.assert_allclose((x1, y1, x2, y2), whole.box, atol=0.51)


def test_given_objects_come_first_as_they_were_given(predictor):
    parts = list(predictor.stream_tokens(IMAGE, KNOWN))
    given = [one for one in parts if one.given]
    assert parts[: len(given)] == given
    assert {one.probability for one in given if isinstance(one, StreamToken)} == {1.0}
    assert [(one.name, one.box) for one in given if isinstance(one, StreamObject)] == [
        (name, tuple(box)) for name, box in KNOWN
    ]
    assert [one.number for one in parts if isinstance(one, StreamObject)][:3] == [0, 1, 2]


@pytest.mark.parametrize("config", ["noise", "copied", "copied patches"])
def test_the_words_are_of_the_vocabulary(config):
    parts = random_predictor(CONFIGS[config]).stream_tokens(IMAGE, classes="dog")
    assert {one.text for one in parts if isinstance(one, StreamToken) and one.slot == "class"} <= {"dog", "noise"}


def test_the_end_is_a_word():
    parts = list(random_predictor(replace(PATCHSEQ, end_bias=1000.0)).stream_tokens(IMAGE))
    assert [(one.object, one.slot, one.text) for one in parts if isinstance(one, StreamToken)] == [(0, "end", "end")]
    assert len(parts) == 1


@pytest.mark.parametrize("config", ["noise", "copied"])
def test_who_stops_asking_stops_the_writer(config, monkeypatch):
    predictor, steps = random_predictor(CONFIGS[config]), []
    step = predictor.detector.decoder.step
    monkeypatch.setattr(predictor.detector.decoder, "step", lambda *given: steps.append(1) or step(*given))
    parts = predictor.stream_tokens(IMAGE)
    assert not steps
    while not isinstance(next(parts), StreamObject):
        pass
    parts.close()
    assert len(steps) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"given": [("cow", (0, 0, 1, 1))]}, "'cow'"),
        ({"given": [("cat", (0, 0, 121, 50))]}, "no box .* inside its image of 120 x 80"),
        ({"classes": "cow"}, "'cow'"),
        ({"given": KNOWN * 3}, "6 objects are given, and no more than 6"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(arguments, message):
    with pytest.raises(UserError, match=message):
        list(random_predictor(PIX2SEQ).stream_tokens(IMAGE, **arguments))


def test_a_detector_that_does_not_write_says_so(white_boxes):
    predictor = Predictor(white_boxes)
    assert not predictor.generates_tokens
    assert random_predictor(PATCHSEQ).generates_tokens
    with pytest.raises(UserError, match="a whiteboxes finds all objects at once"):
        predictor.stream_tokens(IMAGE)
