"""What a decoder that copies is taught: which objects may come next, and which classes are right, at every step.

Training sequences hold the objects of an image in random order, and between and behind them noise: proposals that are
none of them, as the decoder itself will write some. In random order every object that is not written yet is as likely
to be next as any other, so that each step is taught with all of them: the mean over the random orders, computed
instead of drawn.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from boxwright.boxes import iou
from boxwright.models.losses.normaliser import normaliser
from boxwright.models.losses.task_aligned import gather_rows
from boxwright.models.sequence.proposal_decoder import ProposalDecoder, overlaps
from boxwright.models.sequence.proposals import ProposalOutputs, Proposals
from boxwright.models.sequence.side_distributions import box_log_probs
from boxwright.models.sequence.targets import order_objects
from boxwright.types import Batch

NOISE_OBJECTS = 20  # in a training sequence
LATE = 2.0  # noise stands this much further back than objects: half of it behind all of them
JITTER = 0.03  # standard deviation of a written side, relative to the box
UNTOLD = 0.2  # share of the written objects whose class is not told
NO_OBJECT = 0.5  # IoU under which a proposal is noise
# A box of IoU u is right to the degree (u - 0.3) / 0.4: half at 0.5, so that a score can be believed.
LOWEST, SPAN = 0.3, 0.4
WEIGHT = 0.5  # of the loss of the boxes


class WrittenObjects(NamedTuple):
    """Training sequences of N objects.

    Attributes:
        boxes_BN4: xyxy in [0, 1] of the canvas.
        labels_BN: their classes; K where it is not told.
        real_BN: False on padding rows.
        open_BNM: whether each object of the image is still to be written, before each object of the sequence.
    """

    boxes_BN4: Tensor
    labels_BN: Tensor
    real_BN: Tensor
    open_BNM: Tensor


def decoder_losses(
    decoder: ProposalDecoder, outputs: ProposalOutputs, batch: Batch, max_objects: int
) -> dict[str, Tensor]:
    """`box`: negative log-likelihood of the boxes that may come next, half of it; `class`: cross-entropy of the class
    of what the decoder would write.

    Args:
        decoder: in training.
        outputs: of the same batch.
        batch: images and their objects.
        max_objects: the most real ones in a sequence; of more, random ones are left out.
    """
    proposals = outputs.proposals
    written = write_objects(proposals, batch, max_objects)
    states_BNE = decoder.states(written.boxes_BN4, written.labels_BN, proposals)[:, :-1]
    overlap_BNC = overlaps(written.boxes_BN4, proposals.boxes_BC4.detach())[:, :-1]
    log_weights_BNC = decoder.log_weights(states_BNE, overlap_BNC, proposals)
    own_boxes = decoder.own_boxes(states_BNE)
    classes_BNCK = decoder.class_log_probs(states_BNE, overlap_BNC, proposals)
    best = _best_objects(proposals.boxes_BC4, own_boxes[0], batch)
    return {
        "box": WEIGHT * _box_loss(log_weights_BNC, own_boxes, proposals, batch, written),
        "class": _class_loss(log_weights_BNC.detach().exp(), classes_BNCK, *best, batch, written),
    }


def _box_loss(
    log_weights_BNC: Tensor,
    own_boxes: tuple[Tensor, Tensor],
    proposals: Proposals,
    batch: Batch,
    written: WrittenObjects,
) -> Tensor:
    """Mean over the objects that may come next."""
    wanted_BNM = written.open_BNM & written.real_BN[..., None]
    vocabulary = proposals.vocabulary
    bins_BM4 = vocabulary.side_bins(vocabulary.coordinate_tokens(batch.boxes_BN4))
    edges = vocabulary.edges(bins_BM4.device)
    copied_BCM = box_log_probs(proposals.boxes_BC4, proposals.spreads_BC4, bins_BM4, edges)
    own_BNM = box_log_probs(*own_boxes, bins_BM4, edges)
    most_B1M = copied_BCM.detach().amax(1, keepdim=True)
    copies_BNM = log_weights_BNC[..., :-1].exp() @ (copied_BCM - most_B1M).exp()
    copies_BNM = copies_BNM.clamp(min=1e-30).log() + most_B1M
    each_BNM = torch.logaddexp(copies_BNM, log_weights_BNC[..., -1:] + own_BNM)
    return -(each_BNM * wanted_BNM).sum() / normaliser(wanted_BNM.sum().float())


def _class_loss(
    weights_BNC: Tensor,
    classes_BNCK: Tensor,
    best_BNC: Tensor,
    owner_BNC: Tensor,
    batch: Batch,
    written: WrittenObjects,
) -> Tensor:
    """Mean over what the decoder would write: the class of the best object still open, as far as the box is right."""
    right_BNC = ((best_BNC - LOWEST) / SPAN).clamp(0, 1) * written.open_BNM.gather(2, owner_BNC)
    label_BNC = batch.labels_BN[:, None].expand(-1, owner_BNC.shape[1], -1).gather(2, owner_BNC)
    named_BNC = classes_BNCK[..., 1:].gather(3, label_BNC[..., None])[..., 0]
    each_BNC = -(right_BNC * named_BNC + (1 - right_BNC) * classes_BNCK[..., 0])
    return (weights_BNC * each_BNC * written.real_BN[..., None]).sum() / normaliser(written.real_BN.sum().float())


def _best_objects(boxes_BC4: Tensor, own_BN4: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The largest IoU of each component's box with an object, and which object that is, (B, N, C + 1) each.

    Args:
        boxes_BC4: of the proposals, the same for all objects of a sequence.
        own_BN4: the decoder's own boxes.
        batch: images and their objects.
    """
    copied, own = (_overlap_with_objects(boxes, batch).max(-1) for boxes in (boxes_BC4, own_BN4))
    best_BNC, owner_BNC = (
        torch.cat([one_BC[:, None].expand(-1, own_BN4.shape[1], -1), other_BN[..., None]], 2)
        for one_BC, other_BN in zip(copied, own, strict=True)
    )
    return best_BNC, owner_BNC


@torch.no_grad()
def _overlap_with_objects(boxes_BX4: Tensor, batch: Batch) -> Tensor:
    """IoU of each box with each object of its image, (B, X, M)."""
    return iou(boxes_BX4[:, :, None], batch.boxes_BN4[:, None]) * batch.valid_BN[:, None]


@torch.no_grad()
def write_objects(proposals: Proposals, batch: Batch, max_objects: int) -> WrittenObjects:
    """Sequences of the objects of a batch, and of noise; everything random is drawn on the device of the batch.

    Args:
        proposals: of the batch.
        batch: images and their objects.
        max_objects: the most real ones in a sequence.
    """
    boxes_BN4, valid_BN, images = batch.boxes_BN4, batch.valid_BN, len(batch)
    classes, count = proposals.logits_BCK.shape[-1], boxes_BN4.shape[1]
    number_BN = torch.arange(count, device=valid_BN.device).expand(images, -1)
    real_BM4, number_BM, valid_BM = order_objects(boxes_BN4, number_BN, valid_BN, min(count, max_objects))
    sizes_BM4 = (real_BM4[..., 2:] - real_BM4[..., :2]).repeat(1, 1, 2)
    real_BM4 = (real_BM4 + torch.randn_like(real_BM4) * JITTER * sizes_BM4).clamp(0, 1)
    noise_BX4, noise_BX = _noise(proposals, batch)
    labels_BN = torch.cat([batch.labels_BN.gather(1, number_BM), noise_BX], 1)
    untold_BN = torch.rand(labels_BN.shape, device=labels_BN.device) < UNTOLD
    labels_BN = labels_BN.masked_fill(untold_BN, classes)
    later_BX = torch.rand(noise_BX.shape, device=noise_BX.device) * LATE
    soon_BM = torch.rand(valid_BM.shape, device=valid_BM.device).masked_fill(~valid_BM, 1 + LATE)
    when_BN = torch.cat([soon_BM, later_BX], 1)
    order_BN = when_BN.argsort(1)
    boxes_BN4 = proposals.vocabulary.boxes(
        proposals.vocabulary.coordinate_tokens(gather_rows(torch.cat([real_BM4, noise_BX4], 1), order_BN))
    )
    which_BNM = F.one_hot(number_BM, count) * valid_BM[..., None]
    which_BNM = gather_rows(F.pad(which_BNM, (0, 0, 0, noise_BX.shape[1])), order_BN)
    before_BNM = which_BNM.cumsum(1) - which_BNM
    real_BN = torch.cat([valid_BM, torch.ones_like(noise_BX, dtype=torch.bool)], 1).gather(1, order_BN)
    return WrittenObjects(boxes_BN4, labels_BN.gather(1, order_BN), real_BN, (before_BNM == 0) & valid_BN[:, None])


def _noise(proposals: Proposals, batch: Batch) -> tuple[Tensor, Tensor]:
    """Proposals that are no objects, drawn by their scores, and their best classes, (B, X, 4) and (B, X)."""
    overlap_BCM = _overlap_with_objects(proposals.boxes_BC4, batch)
    apart_BC = (overlap_BCM < NO_OBJECT).all(-1)
    scores_BC, labels_BC = proposals.logits_BCK.max(-1)
    chances_BC = (scores_BC.sigmoid() * apart_BC).nan_to_num() + 1e-6  # the loss tells of scores that are no numbers
    drawn_BX = torch.multinomial(chances_BC, min(NOISE_OBJECTS, chances_BC.shape[1]))
    return gather_rows(proposals.boxes_BC4, drawn_BX), labels_BC.gather(1, drawn_BX)
