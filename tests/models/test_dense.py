from dataclasses import replace

import pytest
import torch

from boxwright.models.dense import PEAK, Dense, DenseConfig, one_to_one, peaks_first
from boxwright.models.losses.task_aligned import candidates, one_to_many
from boxwright.types import Batch

CONFIG = DenseConfig(backbone="test_efficientnet", image_size=96, channels=16, depth=1)


@pytest.fixture(params=[False, True], ids=["whole", "lean"])
def detector(request):
    torch.manual_seed(0)
    return Dense(replace(CONFIG, lean=request.param), ("cat", "dog"), pretrained=False)


def test_any_height_and_width_and_a_valid_box_in_every_cell(detector):
    raw = detector(torch.rand(2, 3, 101, 75), torch.tensor([[101, 75], [50, 60]]))
    cells = sum(-(-101 // s) * -(-75 // s) for s in (8, 16, 32))
    assert raw.boxes_BQ4.shape == (2, cells, 4)
    assert (raw.boxes_BQ4[..., 2:] >= raw.boxes_BQ4[..., :2]).all()


def test_padding_says_nothing(detector, batch):
    detector.eval()
    noisy = batch.images_BCHW.clone()
    noisy[1, :, 64:] = 255
    clean = detector(batch.images_BCHW, batch.sizes_B2).many_BQK
    torch.testing.assert_close(detector(noisy, batch.sizes_B2).many_BQK, clean)


def test_loss_falls_and_a_small_set_is_learned(detector, batch):
    optimizer = torch.optim.AdamW(detector.parameters(), 3e-3)
    history = []
    for _ in range(40):
        loss = sum(detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.6 * history[0]


def test_images_without_objects_have_a_finite_loss_and_gradients(detector, batch):
    empty = Batch(**vars(batch) | {"valid_BN": torch.zeros_like(batch.valid_BN)})
    losses = detector.loss(detector(empty.images_BCHW, empty.sizes_B2, empty), empty)
    sum(losses.values()).backward()
    assert losses["l1"] == 0
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


def test_a_box_of_zero_size_does_no_harm(detector, batch):
    batch.boxes_BN4[0, 0, 2:] = batch.boxes_BN4[0, 0, :2]
    losses = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
    assert torch.isfinite(sum(losses.values()))


def test_every_object_gets_one_cell_near_it_and_no_cell_two(detector, batch):
    raw = detector(batch.images_BCHW, batch.sizes_B2)
    pairs = candidates(raw.centres_Q2, raw.reach_Q2, batch.boxes_BN4, batch.valid_BN)
    assert (pairs.any(-1) == batch.valid_BN).all()
    allowed = pairs.gather(2, raw.cells_BR[:, None].expand(-1, 3, -1))
    chosen = one_to_one(raw, batch, pairs) > 0
    assert (chosen.sum(-1) == allowed.any(-1)).all()
    assert (chosen.sum(1) <= 1).all()
    assert (chosen <= allowed).all()
    quality = one_to_many(raw.many_BQK, raw.boxes_BQ4, batch.boxes_BN4, batch.labels_BN, pairs)
    assert ((quality > 0).sum(1) <= 1).all()
    assert quality.min() >= 0
    assert quality.max() <= 1


def test_decoded_rows_are_sorted_and_inside_the_canvas(detector, batch):
    said = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    assert said.scores_BD.shape == (2, 100)
    assert (said.scores_BD.diff(dim=1) <= 0).all()
    assert ((said.boxes_BD4 >= 0) & (said.boxes_BD4 <= 1)).all()
    assert ((said.labels_BD >= 0) & (said.labels_BD < 2)).all()


def test_loss_does_not_depend_on_padding_rows(detector, batch):
    detector.eval()
    wide = Batch(
        **vars(batch)
        | {
            "boxes_BN4": torch.cat([batch.boxes_BN4, torch.zeros(2, 5, 4)], 1),
            "labels_BN": torch.cat([batch.labels_BN, torch.zeros(2, 5, dtype=torch.long)], 1),
            "valid_BN": torch.cat([batch.valid_BN, torch.zeros(2, 5, dtype=torch.bool)], 1),
        }
    )
    raw = detector(batch.images_BCHW, batch.sizes_B2)
    for name, value in detector.loss(raw, batch).items():
        torch.testing.assert_close(value, detector.loss(raw, wide)[name])


def test_the_best_cell_of_each_neighbourhood_becomes_a_candidate_before_its_neighbours():
    many_BQK = torch.full((1, 36 + 9, 2), -9.0)
    many_BQK[0, 7, 0], many_BQK[0, 8, 1] = 3.0, 2.5  # neighbours on the finer level, whatever their class
    many_BQK[0, 28, 1] = 1.0  # alone there
    many_BQK[0, 36 + 4, 0] = 2.9  # on the coarser level, where cells are compared with each other only
    ranking_BQ = peaks_first(many_BQK, [torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 3, 3)])
    assert ranking_BQ[0].topk(3).indices.tolist() == [7, 36 + 4, 28]
    assert ranking_BQ[0, 8] == 2.5 - PEAK


def test_cells_of_one_score_are_all_peaks():
    ranking_BQ = peaks_first(torch.zeros(2, 12, 3), [torch.zeros(2, 1, 3, 4)])
    assert (ranking_BQ == 0).all()
