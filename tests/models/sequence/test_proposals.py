"""Proposals are the best cells of the head, looked at again."""

import pytest
import torch

from boxwright.models.sequence.proposals import SPREAD, proposal_losses, sample_boxes
from helpers.copying import KINDS, copying


@pytest.mark.parametrize("kind", KINDS)
def test_at_first_they_are_what_the_head_predicts(kind, batch):
    detector = copying(kind, trained=False)
    proposals, cells, cells_BC = detector(batch.images_BCHW, batch.sizes_B2)
    assert proposals.states_BCE.shape == (2, 20, 24)
    best = cells.boxes_BQ4.gather(1, cells_BC[..., None].expand(-1, -1, 4))
    torch.testing.assert_close(proposals.boxes_BC4, best)
    scores = cells.many_BQK.amax(-1)
    torch.testing.assert_close(proposals.logits_BCK.amax(-1), scores.gather(1, cells_BC))
    torch.testing.assert_close(proposals.logits_BCK.amax(-1), scores.topk(20).values)
    sizes = (best[..., 2:] - best[..., :2]).repeat(1, 1, 2)
    torch.testing.assert_close(proposals.spreads_BC4, SPREAD * sizes, atol=6e-4, rtol=0)


def test_more_proposals_than_cells_are_all_cells(batch):
    detector = copying("pix2seq", image_size=64, proposals=1000)
    small = batch.images_BCHW[..., :64, :64], batch.sizes_B2.clamp(max=64)
    assert detector(*small).proposals.boxes_BC4.shape == (2, 8 * 8 + 4 * 4 + 2 * 2, 4)
    assert detector.decode(detector(*small)).boxes_BD4.shape == (2, 6, 4)


def test_sampled_maps_are_what_lies_under_the_box():
    """A map that holds x and y of its cells' centres gives the middles of nine parts of the box."""
    maps = []
    for side in (16, 8, 4):
        at = (torch.arange(side) + 0.5) / side
        maps.append(torch.stack([at.expand(side, -1), at[:, None].expand(-1, side)])[None])
    boxes = torch.tensor([[[0.2, 0.3, 0.5, 0.6], [0.2, 0.2, 0.8, 0.8], [0.4, 0.4, 0.6, 0.7]]])
    x, y = sample_boxes(maps, boxes, torch.Size([128, 128])).unflatten(-1, (3, 3, 2)).unbind(-1)
    share = (torch.arange(3) + 0.5) / 3
    for axis, values in enumerate((x, y.mT)):
        expected = boxes[..., axis, None] + (boxes[..., axis + 2] - boxes[..., axis])[..., None] * share
        torch.testing.assert_close(values, expected[:, :, None].expand_as(values))


def test_larger_boxes_are_sampled_on_coarser_maps():
    maps = [torch.full((1, 1, n, n), value) for n, value in ((64, 0.0), (32, 1.0), (16, 2.0))]
    sides = torch.tensor([8, 32, 45.25, 64, 128, 500]) / 512
    low, high = 0.5 - sides / 2, 0.5 + sides / 2
    boxes = torch.stack([low, low, high, high], -1)[None]
    sampled = sample_boxes(maps, boxes, torch.Size([512, 512]))
    torch.testing.assert_close(sampled.mean(-1)[0], torch.tensor([0, 0, 0.5, 1, 2, 2]), atol=1e-3, rtol=0)


def test_losses_of_cells_and_of_proposals_reach_different_layers(batch):
    """Cells are taught by the head's loss alone; losses of the proposals do not reach the head's scores."""
    detector = copying("patchseq").train()
    proposer = detector.proposer
    losses = proposal_losses(detector(batch.images_BCHW, batch.sizes_B2), batch)
    sum(value for name, value in losses.items() if name.startswith("cell_")).backward(retain_graph=True)
    assert proposer.refine.weight.grad is None
    assert proposer.rescore.weight.grad is None
    before = proposer.head.many.bias.grad.clone()
    assert before.abs().sum() > 0
    sum(value for name, value in losses.items() if name.startswith("proposal_")).backward()
    assert proposer.refine.weight.grad.abs().sum() > 0
    assert proposer.rescore.weight.grad.abs().sum() > 0
    assert torch.equal(proposer.head.many.bias.grad, before)
