"""What a decoder that copies is taught."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from boxwright.models.sequence import proposal_targets
from boxwright.models.sequence.proposal_targets import decoder_losses, write_objects
from boxwright.models.sequence.proposals import proposal_losses
from boxwright.types import Batch
from helpers.copying import KINDS, copying


@pytest.fixture(params=KINDS)
def detector(request):
    return copying(request.param)


def with_objects(batch, boxes_BN4, classes=2):
    """The batch with other objects, all of them valid."""
    generator = torch.Generator().manual_seed(1)
    shape = boxes_BN4.shape[:2]
    labels_BN = torch.randint(classes, shape, generator=generator)
    return replace(batch, boxes_BN4=boxes_BN4, labels_BN=labels_BN, valid_BN=torch.ones(shape, dtype=torch.bool))


def some_boxes(count, side=0.1):
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(2, count, 2, generator=generator) * (1 - side)
    return torch.cat([low, low + side], -1)


def written(detector, batch, max_objects=6, seed=0):
    torch.manual_seed(seed)
    return write_objects(detector(batch.images_BCHW, batch.sizes_B2).proposals, batch, max_objects)


def test_every_object_stands_once_in_each_sequence_where_it_is(detector, batch):
    sequence = written(detector, batch)
    for row in range(2):
        true = batch.boxes_BN4[row, batch.valid_BN[row]]
        distances = (sequence.boxes_BN4[row, sequence.real_BN[row], None] - true).abs().amax(-1)
        assert (distances.amin(0) < 0.12).all()  # jittered, and rounded to tokens
    assert sequence.real_BN.sum(1).tolist() == [3 + 20, 1 + 20]
    assert sequence.boxes_BN4.shape == (2, 23, 4)


def test_an_object_is_open_until_it_is_written_and_padding_never_is(detector, batch):
    sequence = written(detector, batch)
    open_BNM = sequence.open_BNM
    assert open_BNM.shape == (2, 23, 3)
    assert torch.equal(open_BNM[:, 0], batch.valid_BN)  # nothing is written before the first
    assert not (open_BNM[:, 1:] & ~open_BNM[:, :-1]).any()  # what is closed stays so
    assert not open_BNM[~batch.valid_BN[:, None].expand_as(open_BNM)].any()
    closing = open_BNM[:, :-1] & ~open_BNM[:, 1:]
    assert (closing.sum(-1) <= 1).all()
    for row, step, number in closing.nonzero().tolist():
        assert (sequence.boxes_BN4[row, step] - batch.boxes_BN4[row, number]).abs().amax() < 0.12


def test_real_rows_come_first_and_half_of_the_noise_behind_all_objects(detector, batch):
    many = replace(with_objects(batch, some_boxes(40)), valid_BN=torch.arange(40) < torch.tensor([[40], [2]]))
    behind = []
    for seed in range(10):
        sequence = written(detector, many, 100, seed)
        real_BN = sequence.real_BN
        assert not (real_BN[:, 1:] & ~real_BN[:, :-1]).any()
        assert real_BN.sum(1).tolist() == [60, 22]
        steps = sequence.open_BNM[0].any(-1).sum().item()
        behind.append((60 - steps) / 20)
    assert 0.3 < sum(behind) / 10 < 0.7


def test_what_is_written_reads_as_tokens(detector, batch):
    vocabulary = detector.vocabulary()
    boxes = written(detector, batch).boxes_BN4
    torch.testing.assert_close(boxes, vocabulary.boxes(vocabulary.coordinate_tokens(boxes)))


def test_labels_are_told_for_most_objects_but_not_for_all(detector, batch):
    labels = torch.cat([written(detector, batch, seed=seed).labels_BN.flatten() for seed in range(30)])
    assert 0.15 < (labels == 2).float().mean() < 0.3
    assert labels.min() == 0
    assert labels.max() == 2


def test_noise_is_no_object(detector, batch):
    """Proposals that overlap an object are drawn only where there are no others."""
    crowd = with_objects(batch, torch.tensor([[[0.0, 0, 1, 1]], [[0.2, 0.2, 0.3, 0.3]]]))
    proposals = detector(batch.images_BCHW, batch.sizes_B2).proposals
    proposals = proposals._replace(boxes_BC4=torch.rand(2, 20, 4).sort(-1).values[..., [0, 1, 2, 3]])
    proposals.boxes_BC4[:, 10:] = crowd.boxes_BN4
    for seed in range(10):
        torch.manual_seed(seed)
        boxes, _ = proposal_targets._noise(proposals, crowd)
        assert (boxes[:, :10] != crowd.boxes_BN4).any(-1).all()


def test_of_more_objects_than_fit_all_are_taught_and_some_written(detector, batch):
    many = with_objects(batch, some_boxes(30))
    with pytest.warns(UserWarning, match="more objects"):
        sequence = written(detector, many, 6)
    assert sequence.boxes_BN4.shape == (2, 6 + 20, 4)
    assert sequence.open_BNM[:, 0].all()
    assert (~sequence.open_BNM[:, -1]).sum(1).max() <= 6
    with pytest.warns(UserWarning, match="more objects"):
        losses = decoder_losses(detector.decoder, detector(many.images_BCHW, many.sizes_B2), many, 6)
    assert all(value.isfinite() for value in losses.values())


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is computed."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


@pytest.mark.filterwarnings("ignore:an image has more objects")
def test_no_tensor_has_an_entry_for_each_step_proposal_and_object(detector, batch):
    """With 3,000 objects in an image it would have gigabytes."""
    crowd = with_objects(batch, some_boxes(400))
    outputs = detector(crowd.images_BCHW, crowd.sizes_B2)
    with LargestTensor() as noted:
        decoder_losses(detector.decoder, outputs, crowd, 6)
    steps, proposals, floats = 6 + 20, 20, 4
    assert noted.largest < 2 * steps * proposals * 400 * floats / 2


CASES = {
    "no objects": lambda batch: replace(batch, valid_BN=torch.zeros_like(batch.valid_BN)),
    "pixels": lambda batch: with_objects(batch, some_boxes(5, 1 / 96)),
    "points": lambda batch: with_objects(batch, some_boxes(5, 0.0)),
    "the canvas": lambda batch: with_objects(batch, torch.tensor([[0.0, 0, 1, 1]]).expand(2, 3, 4)),
    "one place": lambda batch: with_objects(batch, some_boxes(1).repeat(1, 5, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_any_objects_have_finite_losses_and_gradients(detector, batch, case):
    """Of all parts, in the names that the detector gives."""
    those: Batch = CASES[case](batch)
    torch.manual_seed(0)
    losses = detector.train().loss(detector(those.images_BCHW, those.sizes_B2), those)
    assert {"box", "class"} < set(losses)
    assert all(value.isfinite() and value >= 0 for value in losses.values())
    sum(losses.values()).backward()
    grads = {name: p.grad for name, p in detector.named_parameters() if p.requires_grad}
    assert [name for name, grad in grads.items() if grad is not None and not grad.isfinite().all()] == []
    if case == "pixels":
        assert [name for name, grad in grads.items() if grad is None] == []


def test_a_network_of_no_numbers_has_no_finite_loss_but_no_error(detector, batch):
    """Training stops with its own message."""
    for parameter in detector.parameters():
        parameter.data.fill_(torch.nan)
    losses = detector.train().loss(detector(batch.images_BCHW, batch.sizes_B2), batch)
    assert all(losses[name].isnan() for name in ("box", "class"))


@pytest.mark.parametrize("classes", [1, 300])
def test_one_class_or_many(batch, classes):
    for kind in KINDS:
        detector = copying(
            kind,
            tuple(map(str, range(classes))),
            **({"first_coordinate": 500, "vocabulary": 600} if kind == "pix2seq" else {}),
        )
        those = with_objects(batch, some_boxes(4), classes)
        losses = detector.loss(detector(those.images_BCHW, those.sizes_B2), those)
        assert all(value.isfinite() for value in losses.values())
        found = detector.decode(detector(those.images_BCHW, those.sizes_B2))
        assert ((found.labels_BD >= 0) & (found.labels_BD < classes)).all()
        total, count = detector.likelihood(detector(those.images_BCHW, those.sizes_B2), those)
        assert total.isfinite().all()
        assert count.tolist() == [20, 20]


@torch.no_grad()
def test_losses_do_not_depend_on_padding_rows(detector, batch, monkeypatch):
    """Without anything random but the order, which the loss averages over."""
    monkeypatch.setattr(proposal_targets, "JITTER", 0.0)
    monkeypatch.setattr(proposal_targets, "UNTOLD", 1.0)
    wider = {"boxes_BN4": (0, 0, 0, 3), "labels_BN": (0, 3), "valid_BN": (0, 3)}
    padded = replace(batch, **{k: torch.nn.functional.pad(getattr(batch, k), by) for k, by in wider.items()})
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    means = []
    for those in (batch, padded):
        torch.manual_seed(0)
        draws = [decoder_losses(detector.decoder, outputs, those, 6) for _ in range(40)]
        means.append(torch.stack([torch.stack(list(losses.values())) for losses in draws]).mean(0))
    torch.testing.assert_close(*means, rtol=0.06, atol=0.02)
    one, other = (proposal_losses(outputs, those) for those in (batch, padded))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value)


@torch.no_grad()
def test_a_mixture_that_knows_the_objects_has_a_smaller_loss(detector, batch):
    """Proposals on the objects, of their classes; then elsewhere, and of others."""
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    proposals = outputs.proposals
    sure = torch.full((2, 20, 2), -8.0)
    for row in range(2):
        for n in batch.valid_BN[row].nonzero().flatten().tolist():
            sure[row, n, batch.labels_BN[row, n]] = 8.0
    boxes = proposals.boxes_BC4.clone()
    boxes[:, :3] = batch.boxes_BN4.where(batch.valid_BN[..., None], boxes[:, :3])
    spreads = torch.full_like(boxes, 0.01)
    right = proposals._replace(boxes_BC4=boxes, logits_BCK=sure, spreads_BC4=spreads)
    moved = right._replace(boxes_BC4=boxes + 0.1)
    misnamed = right._replace(logits_BCK=sure.flip(-1))
    decoder = copying("pix2seq" if "first_coordinate" in vars(detector.config) else "patchseq", trained=False).decoder

    def loss(of):
        torch.manual_seed(0)
        return decoder_losses(decoder, outputs._replace(proposals=of), batch, 6)

    good = loss(right)
    assert loss(moved)["box"] > good["box"] + 0.5
    assert loss(misnamed)["class"] > good["class"] + 0.5
    torch.testing.assert_close(loss(misnamed)["box"], good["box"])
