from dataclasses import replace

import numpy as np
import pytest
import torch

from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.config import UserError
from boxwright.models.deformable import Deformable, DeformableConfig
from boxwright.models.layers.deformable_transformer import flatten_maps
from boxwright.models.layers.padding import cut, valid_cells
from boxwright.types import Batch

CONFIG = DeformableConfig(
    "test_efficientnet", 96, dim=32, hidden=64, heads=4, encoder_layers=1, decoder_layers=2, queries=20
)
NAMES = ("cat", "dog")
PLAIN = {"forward_twice": False, "noisy": False, "aware": False, "many": False, "fused": False, "rivals": False}
FORMS = {
    "whole": {},
    "not noisy": {"noisy": False},
    "not forward twice": {"forward_twice": False},
    "not aware": {"aware": False},
    "not many": {"many": False},
    "not fused": {"fused": False},
    "not rivals": {"rivals": False},
    "cells": {"begin": "cells"},
    "cells, not rivals": {"begin": "cells", "rivals": False},
    "proposals": {"begin": "proposals", "noisy": False, "rivals": False},
    "two-stage": {"begin": "proposals", **PLAIN},
    "refined": {"begin": "table", **PLAIN},
    "plain": {"begin": "table", "refine": False, **PLAIN},
    "extra level": {"extra_levels": 2},
    "one level": {"strides": (16,), "extra_levels": 0},
}


def make(**changes) -> Deformable:
    torch.manual_seed(0)
    return Deformable(replace(CONFIG, **changes), NAMES, pretrained=False)


@pytest.fixture(params=FORMS)
def detector(request):
    return make(**FORMS[request.param])


def decoded(detector: Deformable, batch: Batch):
    """Of a detector that stands as it is, without a draw."""
    with torch.no_grad():
        return detector.eval().decode(detector(batch.images_BCHW, batch.sizes_B2))


def test_all_parameters_learn_whatever_is_there(detector, batch):
    for valid in (True, False):
        batch.valid_BN &= valid
        losses = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
        assert all(value.isfinite() and value >= 0 for value in losses.values())
        sum(losses.values()).backward()
        assert not [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        detector.zero_grad()


def test_losses_by_layer_and_of_what_is_switched_on(batch):
    def names(detector: Deformable) -> set[str]:
        return set(detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch))

    terms = ("class", "l1", "giou")
    layers = {f"{term}_{layer}" for term in terms for layer in (1, 2)}
    proposals, noisy = {f"{term}_0" for term in terms}, {f"noisy_{name}" for name in layers}
    assert names(make()) == layers | proposals | noisy
    assert names(make(noisy=False)) == layers | proposals
    assert names(make(**FORMS["plain"])) == layers


def test_a_small_set_is_learned(batch):
    detector = make()
    optimizer = torch.optim.AdamW(detector.parameters(), 2e-3)
    history = []
    for step in range(30):
        torch.manual_seed(step)
        loss = sum(detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-3:]) < 0.6 * sum(history[:3])


def test_boxes_lie_on_the_image_and_the_best_come_first(detector, batch):
    said = decoded(detector, batch)
    assert said.boxes_BD4.shape == (2, 20, 4)
    assert (said.boxes_BD4[1, :, 3] <= 64 / 96 + 1e-6).all()
    assert (said.boxes_BD4 >= 0).all()
    assert (said.scores_BD.diff(dim=1) <= 0).all()


def test_fewer_cells_than_queries_are_as_many_queries(batch):
    detector = make(strides=(32,), queries=50, many=False)
    assert decoded(detector, batch).boxes_BD4.shape == (2, 9, 4)
    losses = detector.train().loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
    assert all(value.isfinite() for value in losses.values())


def test_what_is_written_on_the_padding_is_not_read(detector, batch):
    clean = decoded(detector, batch)
    batch.images_BCHW[1, :, 64:] = 255
    spoilt = decoded(detector, batch)
    torch.testing.assert_close(clean.scores_BD, spoilt.scores_BD)
    torch.testing.assert_close(clean.boxes_BD4, spoilt.boxes_BD4)


def test_cells_of_padding_do_not_reach_those_of_the_image():
    detector = make().eval()
    images_BCHW, sizes_B2 = torch.rand(2, 3, 96, 96), torch.tensor([[96, 96], [64, 48]])
    _, mask_BHW = cut(images_BCHW, sizes_B2, detector.backbone.mean)
    maps = [torch.randn(2, 32, 96 // s, 96 // s) for s in CONFIG.strides]
    seen = [valid_cells(mask_BHW, x) for x in maps]
    clean = detector.encoder(maps, seen)
    spoilt = detector.encoder([torch.where(s[:, None], x, 1e3) for s, x in zip(seen, maps, strict=True)], seen)
    torch.testing.assert_close(clean.x_BTE[~clean.padding_BT], spoilt.x_BTE[~clean.padding_BT])
    assert clean.padding_BT[1].sum() == sum((96 // s) ** 2 for s in CONFIG.strides) - sum(
        (64 // s) * (-(-48 // s)) for s in CONFIG.strides
    )


def test_places_and_reach_are_in_parts_of_the_image():
    seen_BHW = torch.zeros(1, 6, 5, dtype=torch.bool)
    seen_BHW[:, :4, :2] = True
    cells = flatten_maps([torch.zeros(1, 8, 6, 5)], [seen_BHW])
    places = cells.centres_BT2.view(6, 5, 2)
    assert places[0, 0].tolist() == [0.25, 0.125]
    assert places[3, 1].tolist() == [0.75, 0.875]
    assert cells.reach_BT2[0, 0].tolist() == [0.5, 0.25]
    torch.testing.assert_close(cells.valid_ratios_BV2[0, 0], torch.tensor([2 / 5, 4 / 6]))


def test_an_image_that_is_all_padding_says_something_finite(detector, batch):
    batch.sizes_B2[1] = 0
    batch.valid_BN[1] = False
    sum(detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch).values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())
    assert decoded(detector, batch).scores_BD.isfinite().all()
    batch.sizes_B2[:] = 0
    assert decoded(detector, batch).scores_BD.isfinite().all()


def test_boxes_of_an_image_that_is_all_padding_are_finite(batch):
    detector = make().eval()
    batch.sizes_B2[1] = batch.originals_B2[1] = 0
    found = decoded(detector, batch).to_detections(batch, NAMES)
    assert len(found[1])
    assert all(np.isfinite(one.boxes_N4).all() for one in found)


def test_a_batch_without_a_row_for_objects_teaches_as_one_of_padding(detector, batch):
    batch.valid_BN[:] = False
    rows = ("boxes_BN4", "labels_BN", "valid_BN")
    without, with_one = (replace(batch, **{name: getattr(batch, name)[:, :count] for name in rows}) for count in (0, 1))
    detector.eval()
    losses = []
    for one in (without, with_one):
        torch.manual_seed(0)
        losses.append(detector.loss(detector(one.images_BCHW, one.sizes_B2, one), one))
    assert losses[0] == losses[1]


def test_boxes_without_size_are_harmless(detector, batch):
    batch.boxes_BN4[0, 0, 2:] = batch.boxes_BN4[0, 0, :2]
    batch.boxes_BN4[1, 0] = 0
    losses = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.parametrize("many", [True, False])
def test_five_hundred_objects_in_an_image(many, batch):
    detector = make(many=many)
    crowd = torch.rand(2, 500, 4) * 0.4
    crowd[..., 2:] += crowd[..., :2] + 0.01
    batch.boxes_BN4, batch.labels_BN = crowd, torch.randint(2, (2, 500))
    batch.valid_BN = torch.ones(2, 500, dtype=torch.bool)
    with pytest.warns(UserWarning, match="more objects than queries"):
        losses = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())


def test_denoising_queries_leave_the_matched_ones_alone(batch):
    """Predictions for matched queries do not depend on the noised boxes beside them."""
    detector = make()
    torch.manual_seed(1)
    one, other = (detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch) for _ in range(2))
    assert one["noisy_l1_1"] != other["noisy_l1_1"]
    for name in one:
        if "noisy" not in name:
            torch.testing.assert_close(one[name], other[name])


def test_a_layer_is_taught_by_the_one_behind_it_only_if_it_looks_forward_twice(batch):
    def reaches(forward_twice: bool) -> bool:
        detector = make(forward_twice=forward_twice, noisy=False, many=False)
        losses = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
        (losses["l1_2"] + losses["giou_2"]).backward()
        return bool(detector.locate[0][-1].bias.grad.any())

    assert reaches(True)
    assert not reaches(False)


def test_first_answers_are_the_proposals_and_scores_begin_low(batch):
    detector = make().eval()
    raw = detector(batch.images_BCHW, batch.sizes_B2)
    queries = detector.start_queries(raw.cells, raw.proposals)
    said = detector.predict_layers(raw.cells, queries)
    torch.testing.assert_close(said.boxes_LBQ4[0], queries.boxes_BQX, atol=1e-4, rtol=0)
    assert 0.003 < said.logits_LBQR.sigmoid().median() < 0.03


def test_cells_of_padding_propose_nothing(batch):
    detector = make().eval()
    raw = detector(batch.images_BCHW, batch.sizes_B2)
    best_BQ = detector._best(raw.proposals)
    assert not raw.cells.padding_BT.gather(1, best_BQ).any()


def test_noisy_queries_need_places_made_of_boxes():
    with pytest.raises(UserError, match="noisy"):
        make(begin="table")


def test_checkpoint_brings_back_the_same_detector(detector, batch, tmp_path):
    save_detector(tmp_path / "x.safetensors", detector, {})
    again = load_detector(tmp_path / "x.safetensors")
    assert again.config == detector.config
    torch.testing.assert_close(decoded(detector, batch).scores_BD, decoded(again, batch).scores_BD)


def test_bf16_says_about_the_same(batch):
    detector = make().eval()
    full = decoded(detector, batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = decoded(detector, batch)
    assert half.scores_BD.dtype == half.boxes_BD4.dtype == torch.float32
    torch.testing.assert_close(full.scores_BD, half.scores_BD, atol=0.01, rtol=0)
    losses = detector.train().loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
    assert all(value.dtype == torch.float32 for value in losses.values())
