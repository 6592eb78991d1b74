from dataclasses import replace

import pytest
import torch

from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.config import UserError
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.detr import PROPOSING, PUBLISHED, Detr, DetrConfig
from boxwright.models.layers.global_transformer import ConditionalAttention
from boxwright.models.layers.padding import cut, valid_cells, valid_ratios
from boxwright.models.layers.post_norm import sine_2d
from boxwright.models.layers.proposals import best_cells
from boxwright.models.losses.task_aligned import gather_rows
from boxwright.training.recipes import recipe
from boxwright.types import Batch

CONFIG = DetrConfig(
    "test_efficientnet", 96, dim=32, hidden=64, heads=4, encoder_layers=1, decoder_layers=2, queries=8, dropout=0.0
)
NAMES = ("cat", "dog")


def make(config: DetrConfig = CONFIG) -> Detr:
    torch.manual_seed(0)
    return Detr(config, NAMES, pretrained=False)


WITH_PROPOSALS = replace(
    PROPOSING, backbone="test_efficientnet", image_size=96, dim=32, hidden=64, heads=4, decoder_layers=2, queries=8
)
FORMS = {
    "post-norm": CONFIG,
    "pre-norm": replace(CONFIG, pre_norm=True),
    "proposals": WITH_PROPOSALS,
    "learned contents": replace(WITH_PROPOSALS, begin="both"),
    "not noisy": replace(WITH_PROPOSALS, noisy=False),
    "not rivals": replace(WITH_PROPOSALS, rivals=False),
    "one map": replace(WITH_PROPOSALS, strides=(16,)),
}


@pytest.fixture(params=FORMS)
def detector(request):
    return make(FORMS[request.param])


def test_all_parameters_learn_whatever_is_there(detector, batch):
    for valid in (True, False):
        batch.valid_BN &= valid
        losses = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
        layers = {f"{name}_{layer}" for name in ("class", "l1", "giou") for layer in (1, 2)}
        proposals = {f"{name}_0" for name in ("class", "l1", "giou") if detector.config.strides}
        noisy = {f"noisy_{name}" for name in layers if detector.config.noisy}
        assert set(losses) == layers | proposals | noisy
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
        detector.zero_grad()


@pytest.mark.parametrize("form", ["post-norm", "pre-norm", "proposals"])
def test_a_small_set_is_learned(form, batch):
    detector = make(FORMS[form])
    optimizer = torch.optim.AdamW(detector.parameters(), 2e-3)
    history = []
    for step in range(40):
        torch.manual_seed(step)
        loss = sum(detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-3:]) < 0.6 * sum(history[:3])


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
    raw = detector(batch.images_BCHW, batch.sizes_B2, batch)
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


def test_without_strides_a_config_of_before_is_the_published_form():
    assert Detr(CONFIG, NAMES, pretrained=False).proposing is None
    assert not DetrConfig().strides
    with pytest.raises(UserError, match="need `strides`"):
        make(replace(CONFIG, noisy=True))
    with pytest.raises(UserError, match="need begin"):
        make(replace(CONFIG, strides=(8, 16)))


@torch.no_grad()
def test_queries_start_as_the_best_proposals_on_the_image(batch):
    detector = make(replace(WITH_PROPOSALS, rivals=False)).eval()
    outputs = detector(batch.images_BCHW, batch.sizes_B2)
    best_BQ = best_cells(outputs.proposals, 8)
    assert not outputs.cells.padding_BT.gather(1, best_BQ).any()
    boxes_BQ4 = gather_rows(outputs.proposals.boxes_BT4, best_BQ).sigmoid()
    torch.testing.assert_close(outputs.layers.boxes_LBQ4[0], boxes_BQ4, atol=1e-4, rtol=0)
    assert 0.003 < outputs.layers.logits_LBQR.sigmoid().median() < 0.03


def test_denoising_queries_leave_the_matched_ones_alone(batch):
    detector = make(WITH_PROPOSALS)
    torch.manual_seed(1)
    one, other = (detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch) for _ in range(2))
    assert one["noisy_l1_1"] != other["noisy_l1_1"]
    for name in one:
        if "noisy" not in name:
            torch.testing.assert_close(one[name], other[name])


@torch.no_grad()
def test_a_head_attends_near_its_box_from_the_start_and_farther_for_a_larger_one():
    torch.manual_seed(0)
    attention = ConditionalAttention(32, 4)
    grid_R = (torch.arange(24) + 0.5) / 24
    centres_1T2 = torch.stack(torch.meshgrid(grid_R, grid_R, indexing="xy"), -1).flatten(0, 1)[None]
    noise_1TE = 0.1 * torch.randn(1, 24 * 24, 32)
    keys_values = attention.cells(noise_1TE, noise_1TE, centres_1T2)
    boxes_1Q4 = torch.tensor([[[0.3, 0.6, 0.1, 0.1], [0.3, 0.6, 0.4, 0.1]]])
    x_1QE = torch.cat([torch.randn(1, 2, 32), boxes_1Q4], -1)
    weights_QM = attention.weights(x_1QE, keys_values)[0].mean(0)
    torch.testing.assert_close(weights_QM.sum(-1), torch.ones(2))
    offset_QM2 = (centres_1T2 - boxes_1Q4[0, :, None, :2]).abs()
    near_QM = (offset_QM2 < 0.1).all(-1)
    assert ((weights_QM * near_QM).sum(-1) > 0.3).all()  # of 3 % of the cells
    spread_Q2 = (weights_QM[..., None] * offset_QM2).sum(1)
    assert spread_Q2[1, 0] > 1.3 * spread_Q2[0, 0]
    assert abs(spread_Q2[1, 1] - spread_Q2[0, 1]) < 0.2 * spread_Q2[0, 1]
    same = attention(x_1QE, keys_values)
    mixed_HQE = attention.weights(x_1QE, keys_values)[0] @ keys_values.values_BHLE[0, ..., :8]
    torch.testing.assert_close(same[0], attention.output(mixed_HQE.transpose(0, 1).flatten(1)))


@torch.no_grad()
def test_bf16_predicts_about_the_same(batch):
    detector = make(WITH_PROPOSALS).eval()
    full = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    with torch.autocast("cpu", torch.bfloat16):
        half = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    assert half.scores_BD.dtype == half.boxes_BD4.dtype == torch.float32
    torch.testing.assert_close(full.scores_BD, half.scores_BD, atol=0.01, rtol=0)


def test_five_hundred_objects_in_an_image(batch):
    detector = make(WITH_PROPOSALS)
    crowd = torch.rand(2, 500, 4) * 0.4
    crowd[..., 2:] += crowd[..., :2] + 0.01
    batch.boxes_BN4, batch.labels_BN = crowd, torch.randint(2, (2, 500))
    batch.valid_BN = torch.ones(2, 500, dtype=torch.bool)
    with pytest.warns(UserWarning, match="more objects than queries"):
        losses = detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch)
    assert all(value.isfinite() for value in losses.values())


@torch.no_grad()
def test_a_class_keeps_its_rows_among_new_ones(batch):
    source = make(replace(WITH_PROPOSALS, class_rows=5, class_ids=(4, 2))).eval()
    target = source.with_classes(("emu", "dog", "cat"), pretrained=False).eval()
    assert (target.config.class_rows, target.config.strides) == (0, source.config.strides)
    before, after = (d(batch.images_BCHW, batch.sizes_B2).proposals for d in (source, target))
    torch.testing.assert_close(before.logits_BTR[..., [4, 2]], after.logits_BTR[..., [2, 1]])
    assert torch.equal(source.proposing.label_embedding[2], target.proposing.label_embedding[1])


def test_recipes_of_both_forms_differ():
    assert recipe("detr", "nano") == recipe("detr", config=WITH_PROPOSALS) != recipe("detr", "resnet50")
    assert recipe("detr", config=CONFIG) == recipe("detr", "resnet50")
