from dataclasses import replace

import pytest
import torch

from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.config import UserError
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.detr import PUBLISHED, Detr, DetrConfig
from boxwright.models.layers.padding import cut, valid_cells, valid_ratios
from boxwright.models.layers.post_norm import sine_2d
from boxwright.types import Batch

CONFIG = DetrConfig(
    "test_efficientnet", 96, dim=32, hidden=64, heads=4, encoder_layers=1, decoder_layers=2, queries=8, dropout=0.0
)
NAMES = ("cat", "dog")


def make(config: DetrConfig = CONFIG) -> Detr:
    torch.manual_seed(0)
    return Detr(config, NAMES, pretrained=False)


@pytest.fixture(params=[False, True], ids=["post-norm", "pre-norm"])
def detector(request):
    return make(replace(CONFIG, pre_norm=request.param))


def test_all_parameters_learn_whatever_is_there(detector, batch):
    for valid in (True, False):
        batch.valid_BN &= valid
        losses = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
        assert set(losses) == {f"{name}_{layer}" for name in ("class", "l1", "giou") for layer in (1, 2)}
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
        detector.zero_grad()


def test_a_small_set_is_learned(detector, batch):
    optimizer = torch.optim.AdamW(detector.parameters(), 2e-3)
    history = []
    for _ in range(40):
        loss = sum(detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.6 * history[0]


def test_boxes_lie_on_the_image_and_the_best_come_first(detector, batch):
    detector.eval()
    said = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    assert said.boxes_BD4.shape == (2, 8, 4)
    assert (said.boxes_BD4[1, :, 3] <= 64 / 96 + 1e-6).all()
    assert (said.boxes_BD4 >= 0).all()
    assert (said.scores_BD.diff(dim=1) <= 0).all()


def test_what_is_written_on_the_padding_is_not_read(detector, batch):
    detector.eval()
    spoilt = batch.images_BCHW.clone()
    spoilt[1, :, 64:] = 255
    one, other = (detector(images, batch.sizes_B2).layers for images in (batch.images_BCHW, spoilt))
    torch.testing.assert_close(one.logits_LBQR, other.logits_LBQR)


def test_padding_is_masked_on_the_right_below_and_in_the_corner():
    """All of it, not the corner alone; then nothing that stands in these cells reaches a query."""
    detector = make().eval()
    images_BCHW, sizes_B2 = torch.rand(2, 3, 96, 96), torch.tensor([[96, 96], [64, 48]])
    _, mask_BHW = cut(images_BCHW, sizes_B2, detector.backbone.mean)
    features_BCHW = torch.randn(2, 32, 6, 6)
    seen_BHW = valid_cells(mask_BHW, features_BCHW)
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:4, :3] = True
    assert seen_BHW[0].all()
    assert torch.equal(seen_BHW[1], expected)
    clean = torch.stack(detector.decoder(detector.encoder(features_BCHW, seen_BHW)))
    for rows, columns in (
        (slice(None), slice(3, None)),
        (slice(4, None), slice(None)),
        (slice(4, None), slice(3, None)),
    ):
        spoilt = features_BCHW.clone()
        spoilt[1, :, rows, columns] = 100
        dirty = torch.stack(detector.decoder(detector.encoder(spoilt, seen_BHW)))
        torch.testing.assert_close(dirty, clean)
    spoilt = features_BCHW.clone()
    spoilt[1, :, 3, 2] = 100  # the last cell of the image is read
    assert (torch.stack(detector.decoder(detector.encoder(spoilt, seen_BHW))) - clean).abs().max() > 1e-3


def test_codes_of_places_count_the_image_alone():
    seen_BHW = torch.zeros(1, 6, 5, dtype=torch.bool)
    seen_BHW[:, :4, :3] = True
    padded = sine_2d(seen_BHW, 16, normalised=True).view(1, 6, 5, 16)
    alone = sine_2d(torch.ones(1, 4, 3, dtype=torch.bool), 16, normalised=True).view(1, 4, 3, 16)
    torch.testing.assert_close(padded[:, :4, :3], alone)


def test_a_batch_is_padded_as_far_as_its_largest_image(detector, batch):
    detector.eval()
    small = Batch(**{name: value[1:] for name, value in vars(batch).items()})
    larger = torch.nn.functional.pad(small.images_BCHW, (0, 40, 0, 40))
    one, other = (detector(images, small.sizes_B2) for images in (small.images_BCHW, larger))
    torch.testing.assert_close(one.layers.boxes_LBQ4, other.layers.boxes_LBQ4)
    torch.testing.assert_close(one.valid_ratios_B4 * 96, other.valid_ratios_B4 * 136)
    assert valid_ratios(larger, small.sizes_B2)[0].tolist() == pytest.approx([96 / 136, 64 / 136] * 2)


def test_an_image_that_is_all_padding_says_something_finite(detector, batch):
    batch.sizes_B2[1] = 0
    batch.valid_BN[1] = False
    raw = detector(batch.images_BCHW, batch.sizes_B2)
    sum(detector.loss(raw, batch).values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())
    assert detector.decode(raw).scores_BD.isfinite().all()
    everything = detector(batch.images_BCHW, torch.zeros_like(batch.sizes_B2))
    assert everything.layers.logits_LBQR.isfinite().all()


def test_checkpoint_brings_back_the_same_detector(detector, batch, tmp_path):
    save_detector(tmp_path / "x.safetensors", detector.eval(), {})
    again = load_detector(tmp_path / "x.safetensors").eval()
    assert again.config == detector.config
    one, other = (d(batch.images_BCHW, batch.sizes_B2).layers.logits_LBQR for d in (detector, again))
    torch.testing.assert_close(one, other)


def test_rows_of_a_foreign_head_are_those_of_the_classes(batch):
    detector = make(replace(CONFIG, class_rows=91, class_ids=(17, 18))).eval()
    raw = detector(batch.images_BCHW, batch.sizes_B2)
    assert raw.layers.logits_LBQR.shape[-1] == 92
    assert set(detector.decode(raw).labels_BD.flatten().tolist()) <= {0, 1}
    with pytest.raises(UserError, match="rows for 91 classes"):
        make(replace(CONFIG, class_rows=91, class_ids=(17, 91)))


def test_dilation_keeps_the_stride_and_the_published_network_has_its_size():
    assert Backbone("resnet18", [16], pretrained=False, dilated=True)(torch.rand(1, 3, 64, 64))[-1].shape[-1] == 4
    published = Detr(replace(PUBLISHED, class_rows=91, class_ids=tuple(range(80))), tuple(map(str, range(80))), False)
    norms = sum(p.numel() for p in published.backbone.parameters() if p.ndim == 1)  # buffers there, not parameters
    assert sum(p.numel() for p in published.parameters()) - norms == 41_524_768
