"""Stored outputs of facebookresearch/detr and of Hugging Face's Deformable DETR, with weights that are a formula."""

import json

import numpy as np
import pytest
import torch

from boxwright.models.detr import set_loss
from boxwright.models.layers.deformable_attention import SamplingPoints, gather_points
from boxwright.models.losses.set_criterion import LayerPredictions, Targets
from helpers.detr_files import convert, drawn, read
from helpers.foreign_files import GOLDEN


@pytest.fixture(scope="module")
def stored():
    with np.load(GOLDEN / "detr_outputs.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize("targets", ["A", "B"])
def test_assignment_and_losses_of_the_last_layer(stored, targets):
    facts = json.loads(stored["facts"].tobytes())[targets]
    objects = max(len(target["labels"]) for target in facts["targets"])
    boxes_BN4, rows_BN = torch.zeros(2, objects, 4), torch.zeros(2, objects, dtype=torch.long)
    valid_BN = torch.zeros(2, objects, dtype=torch.bool)
    for image, target in enumerate(facts["targets"]):
        count = len(target["labels"])
        boxes_BN4[image, :count] = torch.tensor(target["boxes"]).view(-1, 4)
        rows_BN[image, :count] = torch.tensor(target["labels"], dtype=torch.long)
        valid_BN[image, :count] = True
    predictions = LayerPredictions(torch.from_numpy(stored["logits"])[None], torch.from_numpy(stored["boxes"])[None])
    terms, matched_LBN = set_loss(predictions, Targets(boxes_BN4, rows_BN, valid_BN, valid_BN.sum().float()))
    for image, pair in enumerate(facts["assignment"]):
        assert matched_LBN[0, image][pair["tgt"]].tolist() == pair["src"]
    for ours, published, weight in (("class", "loss_ce", 1), ("l1", "loss_bbox", 5), ("giou", "loss_giou", 2)):
        torch.testing.assert_close(terms[ours].item() / weight, facts["losses"][published], rtol=0, atol=1e-5)


def test_sampled_sums_and_their_gradients():
    with np.load(GOLDEN / "point_attention.npz") as arrays:
        golden = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    given = [golden[name] for name in ("value", "sampling_locations_xy", "attention_weights")]
    values, points, weights = (x.requires_grad_() for x in given)
    found = gather_points(values, golden["spatial_shapes_hw"].tolist(), SamplingPoints(points, weights))
    torch.testing.assert_close(found, golden["output_float32"], rtol=0, atol=1e-6)
    gradients = torch.autograd.grad(found, (values, points, weights), golden["cotangent"])
    for name, ours in zip(("value", "sampling_locations", "attention_weights"), gradients, strict=True):
        torch.testing.assert_close(ours, golden[f"grad_{name}"], rtol=0, atol=1e-5)


def images(sharp: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The two images of the formula, padded."""
    sizes = [(230, 301), (261, 200)]
    canvas = np.zeros((2, 3, 261, 301), np.float32)
    for phase, (height, width) in enumerate(sizes):
        h, w, c = np.ogrid[:height, :width, :3]
        p = 0.5 + 0.5 * np.sin(0.05 * h * (c + 1) + 0.07 * w + phase)
        if sharp:
            p = 0.25 + p / 2 + 0.25 * np.sin(0.0009 * h * w * (c + 1) + 0.31 * h - 0.17 * w + 2 * phase)
        canvas[phase, :, :height, :width] = p.transpose(2, 0, 1)
    return torch.from_numpy(canvas), torch.tensor(sizes)


def near(ours: torch.Tensor, golden: np.ndarray, atol: float) -> None:
    torch.testing.assert_close(ours, torch.from_numpy(golden), rtol=0, atol=atol)


@pytest.mark.slow
@torch.no_grad()
def test_detr_is_the_authors_network(stored):
    tensors = drawn("detr", gains=True, **{"input_proj.bias": stored["override"]})
    found = convert(tensors, read("detr"))
    network = found.detector(found.config, tuple(map(str, found.ids)), pretrained=False).eval()
    network.load_state_dict(dict(found.state))
    memory = []
    network.encoder.register_forward_hook(lambda _, __, cells: memory.append(cells.x_BME))
    layers = network(*images(sharp=True)).layers
    near(memory[0][:, ::9, ::16], stored["encoder"], 1e-4)
    near(layers.logits_LBQR[:, :, ::10, ::13], stored["layers_logits"], 5e-5)
    near(layers.boxes_LBQ4[:, :, ::10], stored["layers_boxes"], 5e-6)
    near(layers.logits_LBQR[-1], stored["logits"], 5e-5)


@pytest.mark.slow
@torch.no_grad()
def test_two_stage_deformable_is_hugging_faces(stored):
    found = convert(drawn("hf_deformable_two_stage"), read("hf_deformable_two_stage"))
    network = found.detector(found.config, tuple(map(str, found.ids)), pretrained=False).eval()
    network.load_state_dict(dict(found.state))
    outputs = network(*images(sharp=False))
    shown_BTE = outputs.cells.x_BTE.masked_fill(outputs.cells.padding_BT[..., None], 0)
    near(shown_BTE[:, ::4, ::2][:, ::9, ::16], stored["deformable_encoder"], 1e-4)
    assert torch.equal(network._best(outputs.proposals), torch.from_numpy(stored["deformable_used"]).long())
    layers = outputs.layers
    near(layers.boxes_LBQ4[:, :, ::30], stored["deformable_boxes"], 1e-5)
    near(layers.logits_LBQR[:, :, ::10][:, :, ::3, ::10], stored["deformable_logits"], 1e-4)
