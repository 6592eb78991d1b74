"""The modules of an exported sequence detector, called one after the other in torch as the graph's loop calls them."""

from dataclasses import replace

import pytest
import torch

from boxwright.config import UserError
from boxwright.deployment.onnx.loop_tensors import LoopTensor, LoopTensors
from boxwright.deployment.onnx.sequence_modules import (
    SequenceEnd,
    SequenceStart,
    SequenceStep,
    generation_settings,
)
from boxwright.types import Batch
from helpers.proposals import stir
from helpers.small_replication import VARIANTS, small_replication
from helpers.untrained import untrained

SIDE = 64
CANVAS_BCHW = torch.arange(2 * 3 * SIDE * SIDE).mul(37).remainder(251).view(2, 3, SIDE, SIDE).to(torch.uint8)
SIZE_2 = torch.tensor([SIDE, SIDE])


def configured(model, **changes):
    detector = untrained(model)
    detector = type(detector)(replace(detector.config, **changes), detector.names, pretrained=False).eval()
    if detector.proposer is not None:
        stir(detector.decoder)
    return detector


def in_a_loop(detector, *given):
    """Boxes, scores, labels and what else the graph of a detector gives."""
    start = SequenceStart(detector)
    begun = start.begin(CANVAS_BCHW, SIZE_2, *given)
    step = SequenceStep(detector, begun)
    end = SequenceEnd(detector, step.tensors)
    named = LoopTensors(tuple(begun[1])).unpack(start(CANVAS_BCHW, SIZE_2, *given))
    named |= {"wanted_classes": given[-1] if given else torch.ones(2, dtype=torch.bool)}
    named |= {"seed": torch.tensor(detector.seeds(2))}
    taken, carried = step.tensors.only("carried", "constant", "input"), step.tensors.only("carried")
    objects = []
    for number in range(step.settings.objects):
        goes_on, *tensors = step(torch.tensor(number), *taken.pack(named))
        named |= carried.unpack(tensors[: len(carried.names)])
        objects.append(tensors[len(carried.names) :])
        if not goes_on:
            break
    collected = step.tensors.only("collected").unpack([torch.stack(part) for part in zip(*objects, strict=True)])
    return end(SIZE_2, SIZE_2, *end.tensors.pack(named | collected))


def assert_the_same(graph, generated, predictions):
    boxes_BD4, scores_BD, labels_BD, *more = graph
    best, count = predictions.best_first(), boxes_BD4.shape[1]
    torch.testing.assert_close(scores_BD, best.scores_BD[:, :count], rtol=0, atol=1e-5)
    assert torch.equal(labels_BD, best.labels_BD[:, :count])
    torch.testing.assert_close(boxes_BD4, best.boxes_BD4[:, :count].clamp(0, 1) * SIDE, rtol=0, atol=1e-3)
    if more:
        _, tokens_BNS, log_probs_BNS = more
        assert torch.equal(tokens_BNS.flatten(1), generated.tokens_BL[:, : tokens_BNS[0].numel()])
        log_probs_BL = generated.log_probs_BL[:, : log_probs_BNS[0].numel()]
        torch.testing.assert_close(log_probs_BNS.flatten(1), log_probs_BL, rtol=0, atol=1e-5)


PROMPTABLE = {
    "copied": ("pix2seq", {}),
    "copied, drawn": ("pix2seq", {"top_p": 0.9, "seed": 7}),
    "copied, any token anywhere": ("pix2seq", {"grammar": False}),
    "copied patches": ("patchseq", {}),
    "copied patches, drawn": ("patchseq", {"top_k": 3, "seed": 7}),
    "greedy": ("pix2seq", {"proposals": 0}),
    "drawn": ("pix2seq", {"proposals": 0, "top_p": 0.9, "seed": 7}),
    "ends": ("pix2seq", {"proposals": 0, "noise": False, "end_bias": 2.0}),
    "pointer": ("patchseq", {"proposals": 0, "noise": False}),
    "table of patches": (
        "patchseq",
        {"proposals": 0, "noise": False, "pointing": False, "positions": False, "fine": 0, "top_k": 3},
    ),
    "class last": ("patchseq", {"proposals": 0}),
}


@pytest.mark.parametrize("case", PROMPTABLE)
def test_the_loop_generates_what_the_detector_does(case):
    model, changes = PROMPTABLE[case]
    detector = configured(model, **changes)
    with torch.no_grad():
        outputs = detector(CANVAS_BCHW, SIZE_2.expand(2, -1))
        generated = detector.generate(outputs)
        assert_the_same(in_a_loop(detector), generated, detector.to_predictions(generated, outputs))


@pytest.mark.parametrize("case", PROMPTABLE)
def test_the_loop_goes_on_from_given_objects_with_the_wanted_classes(case):
    model, changes = PROMPTABLE[case]
    detector = configured(model, **changes)
    boxes_BG4 = torch.tensor([[[10.0, 20, 30, 40], [5, 5, 50, 60]], [[1, 2, 30, 44], [0, 0, 0, 0]]])
    labels_BG = torch.tensor([[1, 0], [0, -1]])
    sizes_B2 = SIZE_2.expand(2, -1)
    batch = Batch(
        CANVAS_BCHW, sizes_B2, sizes_B2, boxes_BG4 / SIDE, labels_BG.clamp(min=0), labels_BG >= 0, torch.arange(2)
    )
    with torch.no_grad():
        outputs = detector(CANVAS_BCHW, sizes_B2)
        generated = detector.generate(outputs, given=batch, classes=[1])
        graph = in_a_loop(detector, SIZE_2, boxes_BG4, labels_BG, torch.tensor([False, True]))
    assert_the_same(graph, generated, detector.to_predictions(generated, outputs, [1]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loop_of_a_replication_keeps_coordinates_beside_other_tokens(variant):
    detector = small_replication(variant, image_size=SIDE)
    with torch.no_grad():
        detector.decoder.head[-1].bias[2010:2020] += 1.0  # no coordinates; where they are allowed, they are frequent
        outputs = detector(CANVAS_BCHW, SIZE_2.expand(2, -1))
        generated = detector.generate(outputs)
        assert_the_same(in_a_loop(detector), generated, detector.to_predictions(generated, outputs))


@pytest.mark.parametrize("changes", [{"beams": 2}, {"repeats": False}])
def test_settings_that_no_file_holds_are_refused(changes):
    with pytest.raises(UserError, match="one file holds"):
        generation_settings(configured("pix2seq", **changes))


def test_tensors_are_found_by_name_whatever_their_order():
    one, two = torch.zeros(2, 1), torch.ones(2, 0, 3)
    tensors = LoopTensors((LoopTensor("one", one, "B1", "carried"), LoopTensor("two", two, "BLM", "constant")))
    assert tensors.unpack(tensors.pack({"two": two, "one": one, "three": one}))["two"] is two
    assert tensors.only("constant").names == ["two"]
    assert [list(shape) for shape in tensors.shapes(square_canvas=True)] == [[0], [0, 1]]
    assert [list(shape) for shape in tensors.shapes(square_canvas=False)] == [[0], [0, 1, 2]]
    assert tensors.entries[1].stacked().example.shape == (3, 2, 0, 3)


@pytest.mark.slow
def test_an_exported_replication_predicts_what_its_source_does():
    onnxruntime = pytest.importorskip("onnxruntime")
    from boxwright.deployment.onnx.onnx_file import to_onnx
    from boxwright.deployment.onnx.quantise import to_int8

    def predict(model):
        return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": images_BHW3})

    side, size_2 = 96, torch.tensor([96, 96])
    canvas_BCHW = torch.arange(2 * 3 * side * side).mul(37).remainder(251).view(2, 3, side, side).to(torch.uint8)
    images_BHW3 = canvas_BCHW.permute(0, 2, 3, 1).numpy()
    detector = small_replication("unofficial", image_size=side)
    model = to_onnx(detector)
    boxes_BD4, scores_BD, labels_BD = predict(model)
    with torch.no_grad():
        predictions = detector.decode(detector(canvas_BCHW, size_2.expand(2, -1)))
    torch.testing.assert_close(torch.tensor(scores_BD), predictions.scores_BD, rtol=0, atol=1e-5)
    assert labels_BD.tolist() == predictions.labels_BD.tolist()
    torch.testing.assert_close(torch.tensor(boxes_BD4), predictions.boxes_BD4.clamp(0, 1) * side, rtol=0, atol=1e-3)
    quantised = predict(to_int8(model, list(images_BHW3), ()))[1]
    torch.testing.assert_close(torch.tensor(quantised), torch.tensor(scores_BD), rtol=0.5, atol=1e-3)
