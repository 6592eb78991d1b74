"""Known objects, classes and numbers of objects, as an annotation tool asks for them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from boxwright.checkpoints.detector_file import save_detector
from boxwright.config import UserError
from boxwright.inference.predict import predict
from boxwright.inference.predictor import Predictor
from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig
from boxwright.models.sequence.vocabulary import NOISE

NAMES = ("cat", "dog", "fish")
CONFIG = Pix2SeqConfig(
    backbone="test_efficientnet", image_size=64, encoder_layers=1, encoder_dim=32, encoder_hidden=64, encoder_heads=4,
    decoder_layers=2, decoder_dim=24, decoder_hidden=48, decoder_heads=3, max_objects=6, length=32, bins=50,
    first_coordinate=120, vocabulary=180,
)  # fmt: skip
IMAGE = np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8)
KNOWN = [("dog", (10, 20, 60, 70)), ("cat", [0, 0, 120, 80])]


COPYING = replace(CONFIG, proposals=20, channels=24, depth=1)


@pytest.fixture(scope="module", params=[CONFIG, COPYING], ids=["published", "copying"])
def predictor(request) -> Predictor:
    torch.manual_seed(0)
    detector = Pix2Seq(request.param, NAMES, pretrained=False)
    if not request.param.proposals:
        torch.nn.init.normal_(detector.decoder.token_embedding, std=0.5)
        torch.nn.init.normal_(detector.decoder.position_embedding, std=0.5)
    return Predictor(detector)


def test_only_the_classes_asked_for(predictor):
    everything = predictor.predict(IMAGE, threshold=0)
    assert len(everything) == 6
    for classes, positions in (("dog", {1}), (["fish", "cat"], {0, 2})):
        found = predictor.predict(IMAGE, threshold=0, classes=classes)
        assert set(found.labels_N.tolist()) <= positions
        assert len(found) == 6
        assert (np.diff(found.scores_N) <= 0).all()


def test_the_written_classes_are_filtered_too(predictor):
    batch = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]])
    generated = predictor.detector.generate(predictor.detector(*batch), classes=[1])
    assert set(generated.tokens_BL[0, 4::5].tolist()) <= {NOISE, 102}


def test_known_objects_are_not_said_again(predictor):
    found = predictor.predict(IMAGE, threshold=0, given=KNOWN)
    assert len(found) == 4


def test_each_image_has_its_own_known_objects(predictor):
    """Together, and each alone: the same."""
    known = [KNOWN, [], KNOWN[:1]]
    images = [IMAGE, IMAGE[::-1].copy(), IMAGE[:, ::-1].copy()]
    together = predictor.predict(images, threshold=0, given=known)
    assert [len(found) for found in together] == [4, 6, 5]
    for image, objects, found in zip(images, known, together, strict=True):
        alone = predictor.predict(image, threshold=0, given=objects)
        np.testing.assert_allclose(alone.boxes_N4, found.boxes_N4, atol=1e-3)
        np.testing.assert_allclose(alone.scores_N, found.scores_N, atol=1e-5)


def test_what_is_given_stands_in_the_sentence_where_it_is_in_the_image(predictor, monkeypatch):
    seen = {}

    def note(raw, objects, given, classes):
        seen["tokens"] = predictor.detector.given_tokens(raw, given)
        return type(predictor.detector).generate(predictor.detector, raw, objects, given, classes)

    monkeypatch.setattr(predictor.detector, "generate", note)
    predictor.predict(IMAGE, given=KNOWN)
    scale = 64 / 120 / 64 * 49  # pixels to bins: 120 of them fill the canvas
    expected = [*(round(v * scale) + 120 for v in (20, 10, 70, 60)), 102]
    np.testing.assert_allclose(seen["tokens"][0, :5], expected, atol=1)


def test_a_number_of_objects(predictor):
    assert len(predictor.predict(IMAGE, threshold=0, objects=2)) == 2
    assert len(predictor.predict(IMAGE, threshold=0, objects=4, given=KNOWN)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": []}, "no class is left"),
        ({"classes": ["dogg"]}, r"'dogg' \(did you mean 'dog'\?\); it knows cat, dog, fish"),
        ({"given": [("cow", (0, 0, 1, 1))]}, "'cow'"),
        ({"given": [("cat", (0, 0, 121, 50))]}, r"\[0.0, 0.0, 121.0, 50.0\].* 120 x 80"),
        ({"given": [("cat", (-1, 0, 20, 50))]}, "inside its image"),
        ({"given": [("cat", (20, 0, 10, 50))]}, "no box"),
        ({"given": [("cat", (0, 0, float("nan"), 50))]}, "inside its image"),
        ({"given": [("cat", (0, 0, 10))]}, "x1, y1, x2, y2"),
        ({"given": KNOWN * 3}, "6 objects are given, and no more than 6"),
        ({"objects": 7}, "1 to 6, not 7; `detector.lengthen"),
        ({"given": [("cat", (0, 0, "a", 9))]}, "four numbers x1, y1, x2, y2, not"),
        ({"given": [("cat", None)]}, "four numbers"),
        ({"given": [("cat", "0123")]}, "four numbers"),
        ({"given": [("cat",)]}, r"a list of \(class, \(x1, y1, x2, y2\)\); \('cat',\) is no such pair"),
        ({"given": ["cat"]}, "'cat' is no such pair"),
        ({"given": ("cat", (0, 0, 9, 9))}, "'cat' is no such pair"),
        ({"given": {"cat": (0, 0, 9, 9)}}, "a list for each, not {'cat'"),
        ({"given": [None]}, "None is no such pair"),
        ({"given": [(3, (0, 0, 9, 9))]}, "classes 0 to 2, by position in names, not 3"),
        ({"given": [(None, (0, 0, 9, 9))]}, "a class is a name, or its position in names, not None"),
        ({"classes": [-1]}, "not -1"),
        ({"classes": 1.5}, "a name or a list of names, not 1.5"),
        ({"classes": {"cat": 1}}, "a name or a list of names"),
        ({"objects": 2.5}, "a whole number, not 2.5"),
        ({"objects": "x"}, "a whole number, not 'x'"),
        ({"objects": 0}, "1 to 6, not 0"),
        ({"objects": -1}, "1 to 6, not -1"),
        ({"objects": 2, "given": KNOWN}, "2 objects are given, .* given ones included: ask for objects=3 at least"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(predictor, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        predictor.predict(IMAGE, **arguments)
    assert "\n" not in str(error.value)


def test_classes_by_position_are_those_by_name(predictor):
    by_name, by_position = (
        predictor.predict(IMAGE, threshold=0, given=[(one, (10, 20, 60, 70))], classes=[one]) for one in ("dog", 1)
    )
    assert (by_name.boxes_N4 == by_position.boxes_N4).all()
    assert set(by_position.labels_N.tolist()) == {1}


def test_given_objects_must_be_a_list_for_each_image(predictor):
    with pytest.raises(UserError, match="for 1 images, but there are 2"):
        predictor.predict([IMAGE, IMAGE], given=[KNOWN])


def test_other_detectors_filter_classes_and_refuse_the_rest(white_boxes):
    predictor = Predictor(white_boxes)
    white = np.zeros((64, 64, 3), np.uint8)
    white[16:32, 16:32] = 255
    assert len(predictor.predict(white)) == 1
    assert len(predictor.predict(white, classes="box")) == 1
    assert len(predictor.predict(white, classes=["other"])) == 0
    for arguments in ({"given": [("box", (0, 0, 1, 1))]}, {"objects": 3}):
        with pytest.raises(UserError, match="only a sequence detector can be given objects"):
            predictor.predict(white, **arguments)


@pytest.mark.parametrize("config", [CONFIG, COPYING], ids=["published", "copying"])
def test_all_that_a_longer_sentence_says_is_returned(config):
    torch.manual_seed(0)
    detector = Pix2Seq(config, NAMES, pretrained=False)
    detector.lengthen(120)
    assert len(Predictor(detector).predict(IMAGE, threshold=0)) == 120


def test_scores_among_the_classes_do_not_depend_on_the_filter(predictor, monkeypatch):
    monkeypatch.setattr(predictor.detector, "config", replace(predictor.detector.config, scores="classes"))
    found = predictor.predict(IMAGE, threshold=0, classes="dog")
    assert 0 < found.scores_N.max() < 0.99


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nucleus": "foo"}, "nucleus is official or standard, not 'foo'"),
        ({"scores": "foo"}, "scores is one of full, classes, product, not 'foo'"),
        ({"end_bias": float("nan")}, "end_bias is a number, or -inf to never end, not nan"),
        ({"end_bias": float("inf"), "beams": 2}, "not inf; 1000 ends at once"),
        ({"temperature": 0}, "temperature is over 0, and finite, not 0"),
        ({"temperature": -1}, "not -1"),
        ({"top_p": -1}, "top_p is 0 .* to 1 .*, not -1"),
        ({"top_p": 2}, "not 2"),
        ({"top_k": -1}, "top_k is a whole number, at least 0"),
        ({"beams": 0}, "beams is a whole number, at least 1"),
        ({"beams": 2, "top_p": 0.4}, "beams=2 draws nothing: set top_p=0 and top_k=0, or beams=1"),
        ({"beams": 2, "top_k": 3}, "beams=2 draws nothing"),
        ({"seed": -1}, "a seed is a whole number from 0"),
        ({"seed": 1.5}, "seed is a whole number, or None, not 1.5"),
    ],
)
def test_a_setting_out_of_its_range_is_one_clear_line(predictor, monkeypatch, settings, message):
    monkeypatch.setattr(predictor.detector, "config", replace(predictor.detector.config, **settings))
    with pytest.raises(UserError, match=message) as error:
        predictor.predict(IMAGE)
    assert "\n" not in str(error.value)


def test_with_a_seed_images_of_a_batch_draw_differently(predictor, monkeypatch):
    def draw(**settings):
        monkeypatch.setattr(predictor.detector, "config", replace(predictor.detector.config, top_p=1.0, **settings))
        return [found.boxes_N4.tolist() for found in predictor.predict([IMAGE, IMAGE], threshold=0)]

    alike, first, again, other = draw(), draw(seed=0), draw(seed=0), draw(seed=1)
    assert alike[0] == alike[1] == first[0]
    assert first == again
    assert first[1] == other[0] != first[0]


def test_the_verb_filters_classes(predictor, tmp_path, paint):
    paint(tmp_path / "images" / "a.png", (64, 48), (8, 8, 24, 24))
    save_detector(tmp_path / "best.safetensors", predictor.detector, {})
    for classes, found in ((None, None), (["dog"], {"dog"})):
        summary = predict(
            tmp_path / "best", tmp_path / "images", tmp_path / "out", threshold=0, classes=classes, device="cpu"
        )
        assert found is None or set(summary.objects) <= found
    for classes, message in (
        (["cow"], "'cow'"),
        ("cat,cow", "'cow'"),
        ([], "no class is left"),
        ("", "no class is left"),
    ):
        with pytest.raises(UserError, match=message):
            predict(tmp_path / "best", tmp_path / "images", tmp_path / "out2", classes=classes, device="cpu")
    assert not (tmp_path / "out2").exists()
    both = predict(
        tmp_path / "best", tmp_path / "images", tmp_path / "out", threshold=0, classes="cat, dog", device="cpu"
    )
    assert both.objects.total() == 6
    assert set(both.objects) <= {"cat", "dog"}
