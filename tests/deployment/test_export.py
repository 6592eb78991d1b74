import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from boxwright.checkpoints.detector_file import save_detector
from boxwright.config import UserError
from boxwright.data.records import Record
from boxwright.deployment.export import ExportImages, export
from boxwright.deployment.onnx.parity import Parity, average_precision, compare, compared_above, f1_at_thresholds
from boxwright.detections import Detections
from boxwright.inference.predictor import Predictor
from boxwright.runtime import Detector
from boxwright.thresholds import Thresholds
from boxwright.types import Predictions
from helpers.untrained import PADDED, SMALLEST, untrained


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    files = [tmp_path / f"{n}.png" for n in range(3)]
    for file, shape in zip(files, [(48, 64, 3), (90, 70, 3), (64, 64, 3)], strict=True):
        small = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize(shape[1::-1], Image.Resampling.BILINEAR).save(file)
    return files


def compared_on(photos, monkeypatch, names=None):
    images = records(photos)
    monkeypatch.setattr(
        "boxwright.deployment.export._export_images",
        lambda data, known: ExportImages(images, names, "3 images", images, []),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize(
    ("model", "backbone"),
    [("dense", SMALLEST), ("detr", PADDED), ("deformable", PADDED), ("pix2seq", SMALLEST), ("patchseq", SMALLEST)],
)
def test_the_file_predicts_what_its_source_predicts(model, backbone, tmp_path, photos, monkeypatch):
    compared_on(photos, monkeypatch)
    detector = untrained(model, backbone)
    stored = Thresholds(0.3, {"dog": 0.25}, "9 images")
    save_detector(tmp_path / "x.safetensors", detector, stored.to_card())
    file = export(tmp_path / "x", out=tmp_path / "x.onnx")
    assert (tmp_path / "x.report.md").is_file()
    assert Detector(file).thresholds == stored
    exported, source = Detector(file), Predictor(detector, "cpu")
    assert exported.names == ("cat", "dog")
    for photo in photos:
        ours, theirs = (each.predict(photo, threshold=0.0) for each in (exported, source))
        np.testing.assert_allclose(ours.scores_N[:5], theirs.scores_N[:5], atol=1e-3)
    assert exported.generates_tokens == source.generates_tokens
    same = photos[2]  # of the canvas's size: both get the same pixels
    given = [("cat", (0, 0, 9, 9)), ("dog", (1, 2, 30, 40))] if source.generates_tokens else None
    for request in ({"classes": "dog", "given": None}, {"classes": ["cat"], "given": given}, {"given": given}):
        ours, theirs = (each.predict(same, threshold=0.0, **request) for each in (exported, source))
        np.testing.assert_array_equal(ours.labels_N, theirs.labels_N)
        np.testing.assert_allclose(ours.scores_N, theirs.scores_N, atol=1e-4)
        np.testing.assert_allclose(ours.boxes_N4, theirs.boxes_N4, atol=1e-2)
        several = exported.predict([photos[0], same], 0.0, **request | {"given": request["given"] and [[], given]})
        np.testing.assert_allclose(several[1].boxes_N4, ours.boxes_N4, atol=1e-2)
    if source.generates_tokens:
        for given in ([], [("dog", (5, 5, 30, 40)), ("cat", (10, 20, 40, 47))]):
            ours, theirs = (list(each.stream_tokens(photos[0], given)) for each in (exported, source))
            assert [getattr(part, "slot", part) for part in ours if part.given] == [
                getattr(part, "slot", part) for part in theirs if part.given
            ]
            assert [type(part) for part in ours] == [type(part) for part in theirs]


def test_what_onnx_cannot_express_is_one_line_of_error_and_no_file(tmp_path, photos, monkeypatch):
    def cannot(detector):
        raise torch.onnx.OnnxExporterError("no such operator")

    monkeypatch.setattr("boxwright.deployment.onnx.onnx_file.to_onnx", cannot)
    save_detector(tmp_path / "x.safetensors", untrained("dense"), {})
    with pytest.raises(UserError, match=r"a dense can't be written as ONNX .*no such operator"):
        export(tmp_path / "x", out=tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def records(photos):
    nothing = (np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool))
    return [Record(photo, *Image.open(photo).size, *nothing, n, "") for n, photo in enumerate(photos, 1)]


class Different:
    faults = ("3 of 4 objects are predicted by only one of the two",)


class Equal:
    faults = ()

    def to_markdown(self, name):
        return f"# {name}\n\n"

    def to_json(self):
        return "{}"


@pytest.mark.slow
@pytest.mark.usefixtures("exported_once")
def test_a_file_that_predicts_something_else_is_not_kept(tmp_path, photos, monkeypatch):
    compared_on(photos, monkeypatch)

    monkeypatch.setattr("boxwright.deployment.onnx.parity.compare", lambda *args: Different())
    save_detector(tmp_path / "x.safetensors", untrained("dense"), {})
    with pytest.raises(UserError, match=r"x\.onnx was not written, as it is not proven equal to its source: 3 of 4"):
        export(tmp_path / "x", out=tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("exported_once")
def test_where_8_bits_cost_too_much_more_layers_stay_fp32(tmp_path, photos, monkeypatch):
    compared_on(photos, monkeypatch, ("cat", "dog"))
    tried = []

    def second_try_is_equal(file, *args):
        tried.append(file.facts.precision)
        return Different() if len(tried) == 1 else Equal()

    monkeypatch.setattr("boxwright.deployment.onnx.parity.compare", second_try_is_equal)
    save_detector(tmp_path / "x.safetensors", untrained("dense"), {})
    file = export(tmp_path / "x", precision="int8", data=tmp_path)
    assert tried == ["int8", "int8"]
    assert Detector(file).facts.precision == "int8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "int8 learns its ranges from your images: give --data"),
        ({"precision": "fp16"}, "is measured in AP: give --data with objects of cat, dog"),
        ({"precision": "int4"}, "--precision is one of fp32, fp16, int8, not 'int4'"),
        ({"to": "coreml"}, "--to is onnx, not 'coreml'"),
        ({"out": "x.safetensors"}, r"--out is a file that ends in \.onnx, not x\.safetensors"),
        ({"out": "/dev/null/x.onnx"}, "/dev/null is a file, not a folder; give another --out"),
    ],
)
def test_options_that_are_refused(tmp_path, options, message):
    save_detector(tmp_path / "x.safetensors", untrained("dense"), {})
    with pytest.raises(UserError, match=message):
        export(tmp_path / "x", **options)
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_classes_that_the_detector_does_not_know_are_not_scored(photos):
    class CatsAndDogs:
        names, image_size = ("cat", "dog"), 64

    boxes, no = np.array([[0, 0, 20, 20], [10, 10, 40, 40]], np.float32), np.zeros(2, dtype=bool)
    annotated = [Record(photos[0], 64, 48, boxes, np.array([0, 1]), no, 1, "")]
    found = [Detections(boxes[:1], np.array([0.9], np.float32), np.array([1]), CatsAndDogs.names)]
    assert average_precision(annotated, found, ("dog", "unheard of"), CatsAndDogs) == pytest.approx(100)
    assert average_precision(annotated, found, ("elk", "unheard of"), CatsAndDogs) is None


def test_what_fewer_bits_cost_at_the_stored_thresholds_is_reported(photos):
    class Cats:
        names, image_size, card = ("cat", "dog"), 64, Thresholds(0.8, {"cat": 0.6}, "x").to_card()

    boxes, no = np.array([[0, 0, 20, 20], [10, 10, 40, 40]], np.float32), np.zeros(2, dtype=bool)
    annotated = [Record(photos[0], 64, 48, boxes, np.array([1, 1]), no, 1, "")]
    found = [Detections(boxes, np.array([0.7, 0.5], np.float32), np.array([0, 0]), Cats.names)]
    assert f1_at_thresholds(annotated, found, ("dog", "cat"), Cats) == pytest.approx(100 * 2 / 3)
    Cats.card = {}
    assert f1_at_thresholds(annotated, found, ("dog", "cat"), Cats) is None
    zeros = dict.fromkeys(("images", "spoken", "objects", "missing", "box_px", "score", "ap_source", "ap_file"), 0)
    rest = {"batch_missing": 0, "batch_px": 0.0, "batch_score": 0.0, "grey": 0}
    assert "F1 at" not in Parity("int8", **zeros, **rest).to_markdown("x")
    row = "| F1 at the stored thresholds, source and file | 66.70 and 65.00 |"
    assert row in Parity("int8", **zeros, **rest, f1_source=66.7, f1_file=65.0).to_markdown("x")


class TwoCells(nn.Module):
    """Of two cells with nearly the same score, the better one keeps it, and the other one loses it."""

    names, image_size, square_canvas = ("cat",), 64, False

    def __init__(self, ahead: float):
        super().__init__()
        self.score = nn.Parameter(torch.tensor([0.7 + ahead, 0.7]))

    def forward(self, images_BCHW, sizes_B2):
        return images_BCHW

    def decode(self, images_BCHW):
        best = self.score.argmax()
        scores = self.score.detach() - 0.5 * (torch.arange(2) != best)
        boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.6, 0.6]])
        return Predictions(boxes[None], scores[None], torch.zeros(1, 2, dtype=torch.long))


class TheOtherCell:
    """A file in which the second cell is better."""

    def run(self, images):
        boxes = np.array([[[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.6, 0.6]]], np.float32) * 64
        scores = np.array([[0.2, 0.7]], np.float32)
        return tuple(np.repeat(x, len(images), 0) for x in (boxes, scores, np.zeros((1, 2), np.int64)))


@pytest.mark.parametrize(("ahead", "tied"), [(0.0, 1), (1e-3, 0)])
def test_what_rounding_alone_decides_is_left_out_and_counted(photos, ahead, tied):
    detector = TwoCells(ahead)
    before = detector.score.detach().clone()
    parity = compare(TheOtherCell(), detector, "fp32", records(photos)[:1], None)
    assert parity.tied == tied
    assert bool(parity.faults) is not bool(tied)
    assert torch.equal(detector.score, before)


def test_many_images_that_rounding_decides_are_a_fault():
    zeros = dict.fromkeys(("images", "spoken", "objects", "missing", "box_px", "score", "ap_source", "ap_file"), 0)
    rest = {"batch_missing": 0, "batch_px": 0.0, "batch_score": 0.0, "grey": 0}
    faults = [Parity("fp32", **(zeros | {"images": 40}), **rest, tied=tied).faults for tied in (2, 3)]
    assert [len(each) for each in faults] == [0, 1]
    assert "rounding alone decides what the source finds in 3 of 40 images" in faults[1][0]


class OneObject:
    """A file that predicts one object, whose score depends on the position of the image in its batch."""

    def __init__(self, *scores):
        self.scores = scores

    def run(self, images):
        scores = np.array([[score, 0.0] for score in self.scores[: len(images)]], np.float32)
        return np.zeros((*scores.shape, 4), np.float32), scores, np.zeros(scores.shape, np.int64)


@pytest.mark.parametrize(("scores", "above", "objects"), [((0.9, 0.3, 0.02), 0.05, 2), ((0.04, 0.03, 0.02), 0.0, 3)])
def test_without_high_scores_the_best_objects_are_compared(scores, above, objects):
    found = Detections(np.zeros((3, 4)), np.array(scores), np.zeros(3, np.int64), ("cat",))
    min_score = compared_above("fp32", [found, found.above(1.0)])
    assert min_score == pytest.approx(above or 0.02)
    assert len(found.above(min_score)) == objects


@pytest.mark.parametrize("ap", [None, 0.4])
def test_fewer_bits_are_not_judged_by_a_source_without_ap(ap):
    zeros = dict.fromkeys(("images", "spoken", "objects", "missing", "box_px", "score"), 0)
    in_a_batch = {"batch_missing": 0, "batch_px": 0.0, "batch_score": 0.0, "grey": 0}
    assert any("tell" in fault for fault in Parity("int8", **zeros, ap_source=ap, ap_file=ap, **in_a_batch).faults)


def test_data_without_a_class_that_the_detector_knows_is_refused_at_once(tmp_path, photos):
    save_detector(tmp_path / "x.safetensors", untrained("dense"), {})
    annotation = {"images": [{"id": 1, "file_name": "0.png", "width": 64, "height": 48}], "annotations": []}
    (tmp_path / "annotations.json").write_text(json.dumps(annotation | {"categories": [{"id": 1, "name": "cat"}]}))
    with pytest.raises(UserError, match="what int8 costs is measured in AP: give --data with objects of cat, dog"):
        export(tmp_path / "x", precision="int8", data=tmp_path)


def test_other_predictions_beside_another_image_are_a_fault(photos):
    parity = compare(OneObject(0.9, 0.0), untrained("dense"), "fp32", records(photos)[:1], None)
    assert any("beside another image" in fault for fault in parity.faults)
