import copy
from dataclasses import replace

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Attention
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from boxwright.config import UserError
from boxwright.models import registry
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.backbones.plain_vit import PlainViT, WindowedAttention
from boxwright.models.dense import SIZES, Dense
from boxwright.models.registry import DETECTORS
from boxwright.training import recipes
from boxwright.training.optim import make_optimizer

SHAPE = {"patch_size": 8, "embed_dim": 32, "depth": 8, "num_heads": 2, "dynamic_img_size": True}


def vit(**given):
    return VisionTransformer(img_size=32, **SHAPE | given).eval()


def eva(**given):
    return Eva(img_size=32, use_rot_pos_emb=True, **SHAPE | given).eval()


BUILDS = {
    "cells": lambda: vit(class_token=False, global_pool="avg"),
    "class": vit,
    "registers": lambda: vit(reg_tokens=3, no_embed_class=True),
    "rotary": lambda: eva(num_reg_tokens=1),
    "rotary of each head": lambda: eva(rope_type="mixed"),
}


@pytest.mark.parametrize("build", BUILDS)
@torch.no_grad()
def test_one_window_is_the_transformer_as_pretrained(build):
    original = BUILDS[build]()
    plain = PlainViT(copy.deepcopy(original), [8], window=6).eval()
    pixels = torch.rand(2, 3, 40, 48)
    (features,) = plain(pixels)
    _, (cells,) = original.forward_intermediates(pixels, indices=1)
    norm = original.fc_norm if isinstance(original.norm, nn.Identity) else original.norm
    assert torch.equal(features, norm(cells.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("build", BUILDS)
@torch.no_grad()
def test_windowed_attention_does_not_see_other_windows(build):
    plain = PlainViT(BUILDS[build](), [8], window=3).eval()
    for block in plain.vit.blocks:  # every block in windows; copies of the prefix would carry news between them
        if not isinstance(block.attn, WindowedAttention):
            block.attn = WindowedAttention(block.attn, plain.vit.num_prefix_tokens, 3)
            plain.grid_modules.append(block.attn)
    pixels = torch.rand(1, 3, 48, 48)
    changed = pixels.clone()
    changed[..., 24:, 24:] = 0
    (before,), (after,) = plain(pixels), plain(changed)
    near, far = (before - after)[..., 3:, 3:].abs().max(), (before - after)[..., :3, :3].abs().max()
    assert near > 1e-2
    assert far == 0 if plain.vit.num_prefix_tokens == 0 else far < near / 3


@torch.no_grad()
def test_windows_are_attention_under_a_mask():
    attention = Attention(16, num_heads=2).eval()
    windows = WindowedAttention(attention, 0, 3)
    windows.grid = (6, 4)
    rows, columns = torch.meshgrid(torch.arange(6) // 3, torch.arange(4) // 2, indexing="ij")
    number = (rows * 2 + columns).flatten()
    x_BNE = torch.rand(2, 24, 16)
    masked = attention(x_BNE, attn_mask=(number[:, None] == number)[None, None])
    torch.testing.assert_close(windows(x_BNE), masked)


@torch.no_grad()
def test_the_prefix_is_averaged_over_the_windows():
    attention = Attention(16, num_heads=2).eval()
    windows = WindowedAttention(attention, 1, 2)
    windows.grid = (2, 4)
    x_BNE = torch.rand(1, 9, 16)
    cells = x_BNE[:, 1:].unflatten(1, (2, 4))
    seen = [attention(torch.cat([x_BNE[:, :1], part.flatten(1, 2)], 1)) for part in (cells[:, :, :2], cells[:, :, 2:])]
    torch.testing.assert_close(windows(x_BNE)[:, 0], (seen[0][:, 0] + seen[1][:, 0]) / 2)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_windows_divide_the_grid_and_join_again(rows, columns, side, prefix):
    windows = WindowedAttention(nn.Identity(), prefix, side)
    windows.grid = (rows, columns)
    x_BNE = torch.rand(2, prefix + rows * columns, 3)
    windows_BWME = windows._split(x_BNE[:, prefix:])
    assert windows_BWME.shape[2] <= side**2
    torch.testing.assert_close(windows(x_BNE), x_BNE)


@given(st.integers(8, 70), st.integers(8, 70))
@settings(max_examples=10, deadline=None)
@torch.no_grad()
def test_maps_are_rounded_up_as_those_of_a_convolutional_network(height, width):
    plain = PlainViT(vit(depth=4), (2, 4, 8, 16), window=3)
    maps = plain(torch.rand(1, 3, height, width))
    for x, channels, stride in zip(maps, plain.channels, plain.strides, strict=True):
        assert x.shape == (1, channels, -(-height // stride), -(-width // stride))


def test_a_copy_has_its_own_grid_modules():
    plain = PlainViT(vit(), [8], window=2)
    other = copy.deepcopy(plain)
    assert {id(m) for m in other.grid_modules} <= {id(m) for m in other.modules()}


def test_a_patch_of_14_pixels_becomes_one_of_16_with_its_positions_as_they_were():
    original = VisionTransformer(img_size=56, **SHAPE | {"patch_size": 14})
    plain = PlainViT(copy.deepcopy(original), [4, 16])
    assert plain.patch == 16
    assert torch.equal(plain.vit.pos_embed, original.pos_embed)
    assert plain.vit.patch_embed.proj.weight.shape[-2:] == (16, 16)
    smooth = torch.full((1, 3, 64, 64), 0.7)  # enlarged patches see the same in an enlarged image
    enlarged, before = plain.vit.patch_embed(smooth), original.patch_embed(smooth[..., :56, :56])
    torch.testing.assert_close(enlarged, before, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_convolutions_begin_as_identity_and_show_where_edges_are():
    plain = PlainViT(vit(), [8], window=3, convolved=True).eval()
    flat = torch.full((1, 3, 56, 56), 0.5)
    (cells,) = plain(flat)
    torch.testing.assert_close(cells, cells[..., :1, :1].expand_as(cells))
    for module in plain.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            nn.init.constant_(module.weight, 0.2)
    (cells,) = plain(flat)
    assert (cells[..., 0, 0] - cells[..., 3, 3]).abs().max() > 1e-3


def test_convolutions_need_a_plain_mlp():
    with pytest.raises(UserError, match="plain MLPs"):
        PlainViT(eva(), [8], convolved=True)


@pytest.mark.slow
def test_it_can_be_exported():
    plain = PlainViT(vit(reg_tokens=1, depth=4), (4, 8), window=3, convolved=True).eval()
    pixels = torch.rand(1, 3, 56, 40)
    exported = torch.export.export(plain, (pixels,)).module()
    for features, expected in zip(exported(pixels), plain(pixels), strict=True):
        torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "deit_tiny_distilled_patch16_224"])
def test_all_parameters_get_gradients(name):
    backbone = Backbone(name, [8, 16], pretrained=False)
    sum(x.square().sum() for x in backbone(torch.rand(1, 3, 64, 64))).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


def test_the_patches_are_frozen_and_the_pyramid_learns_at_the_full_rate():
    backbone = Backbone("test_vit", [8, 16], pretrained=False)
    known = {id(p) for p in backbone.known_parameters()}
    made = [name for name, p in backbone.named_parameters() if id(p) not in known]
    assert made
    assert all(name.startswith("net.pyramid.") for name in made)
    backbone.freeze()
    frozen = [name for name, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen == ["net.vit.patch_embed.proj.weight", "net.vit.patch_embed.proj.bias"]


def test_colours_are_those_of_the_weights():
    backbone = Backbone("vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", [16], pretrained=False)
    config = timm.get_pretrained_cfg("vit_xsmall_patch16_clip_224.tinyclip_yfcc15m")
    torch.testing.assert_close(backbone.mean.flatten(), torch.tensor(config.mean))
    assert config.mean != timm.get_pretrained_cfg("vit_small_patch16_224").mean


@pytest.mark.parametrize("model", ["dense", "pix2seq", "patchseq", "detr", "deformable"])
def test_every_detector_learns_on_a_plain_transformer(model, batch):
    network, _, sizes = DETECTORS[model]
    short = {"max_objects": 4} if model in ("pix2seq", "patchseq") else {}
    detector = network(replace(sizes["nano"], backbone="test_vit", image_size=64, **short), ("cat", "dog"), False)
    loss = sum(detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch).values())
    loss.backward()
    assert torch.isfinite(loss)
    with torch.no_grad():
        predictions = detector.eval().decode(detector(batch.images_BCHW, batch.sizes_B2))
    assert predictions.boxes_BD4.isfinite().all()


def test_base_is_of_the_middle_size():
    with torch.device("meta"):
        detector = Dense(SIZES["base"], ("cat", "dog"), pretrained=False)
    assert 80e6 < sum(p.numel() for p in detector.parameters()) < 100e6
    assert detector.backbone.patch == 16


@pytest.mark.parametrize(
    ("name", "strides", "error"),
    [
        ("vit_smal_patch16_224", (16,), "did you mean 'vit_small_patch16_224'"),
        ("vit_small_patch16_224.nonsense", (16,), "has no weights 'vit_small_patch16_224.nonsense'.*augreg"),
        ("test_vit", (12,), "strides 4, 8, 16, 32, not 12"),
        ("test_vit_relpos", (16,), "images of one size only"),
        ("mixer_s16_224", (16,), "images of one size only"),
    ],
)
def test_a_wrong_transformer_is_named_with_the_fix(name, strides, error):
    with pytest.raises(UserError, match=error):
        Backbone(name, strides, pretrained=False)


@pytest.mark.parametrize("model", ["dense", "pix2seq", "detr", "deformable"])
def test_a_plain_transformer_learns_slower_than_a_convolutional_network(model):
    usual, slower = recipes.recipe(model).optim, recipes.recipe(model, backbone="vit_small_patch16_224.dino").optim
    assert slower.lr == usual.lr
    assert slower.lr * slower.backbone_factor <= 5e-5
    assert recipes.recipe("dense", "base").optim == recipes.recipe("dense", backbone="test_vit").optim


def test_an_image_size_between_two_patches_names_both():
    detector = registry.build("dense", "nano", ("cat",), image_size=333, backbone="test_vit", pretrained=False)
    with pytest.raises(UserError, match="333 is not made of whole patches of 16 pixels; take 320 or 336"):
        registry.check_image_size(detector)


def test_tables_of_positions_and_class_tokens_do_not_decay():
    detector = registry.build("dense", "nano", ("cat",), image_size=64, backbone="test_vit", pretrained=False)
    groups = make_optimizer(detector, recipes.recipe("dense").optim).param_groups
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    vit = detector.backbone.net.vit
    assert not decaying & {id(vit.pos_embed), id(vit.cls_token)}
    assert id(vit.blocks[0].mlp.fc1.weight) in decaying


def test_pretrained_weights_are_named_with_their_licence(monkeypatch):
    asked = []
    create = timm.create_model

    def without_download(name, pretrained=False, **given):
        asked.append(pretrained)
        return create(name, **given)

    monkeypatch.setattr(timm, "create_model", without_download)
    backbone = Backbone("vit_xsmall_patch16_clip_224", [16])
    assert asked == [True]
    assert backbone.origin == "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m, licence mit"
    assert not backbone.net.vit.patch_embed.proj.weight.requires_grad
    assert Backbone("test_vit", [16], pretrained=False).origin == ""
