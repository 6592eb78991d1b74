import pytest
import torch

from boxwright.config import UserError
from boxwright.models.backbones.backbone import OFFLINE, Backbone


@pytest.mark.parametrize("name", OFFLINE)
def test_offline_weights_are_loaded_and_the_stem_is_frozen(name):
    backbone = Backbone(name, (8, 16, 32))
    untrained = Backbone(name, (8, 16, 32), pretrained=False)
    kernel = "net.blocks.3.0.conv_pw.weight"
    assert not torch.equal(backbone.state_dict()[kernel], untrained.state_dict()[kernel])
    frozen = [n for n, p in backbone.net.named_parameters() if not p.requires_grad]
    assert frozen[0].startswith("conv_stem")
    assert frozen[-1].startswith("blocks.1.")
    assert all(p.requires_grad for p in untrained.parameters())


def test_pretrained_statistics_do_not_move_in_training():
    backbone = Backbone("tf_efficientnet_lite0", (16,)).train()
    before = backbone.net.bn1.running_mean.clone()
    backbone(torch.rand(2, 3, 64, 64))
    assert torch.equal(backbone.net.bn1.running_mean, before)


def test_maps_have_the_wanted_strides():
    backbone = Backbone("test_efficientnet", (8, 32), pretrained=False)
    maps = backbone(torch.rand(1, 3, 96, 64))
    assert [tuple(x.shape[1:]) for x in maps] == [(backbone.channels[0], 12, 8), (backbone.channels[1], 3, 2)]


@pytest.mark.parametrize(
    ("name", "strides", "error"),
    [
        ("tf_efficientnet_lite9", (8,), "did you mean 'tf_efficientnet_lite"),
        ("test_resnet", (8, 64), "not at \\[64\\]"),
    ],
)
def test_a_wrong_backbone_is_named_with_the_fix(name, strides, error):
    with pytest.raises(UserError, match=error):
        Backbone(name, strides, pretrained=False)


def test_missing_weights_are_one_clear_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="tf_efficientnet_lite0"):
        Backbone("test_resnet", (8,))


def test_all_parameters_get_gradients():
    backbone = Backbone("test_efficientnet", [16], pretrained=False)
    (features,) = backbone(torch.rand(1, 3, 64, 64))
    features.sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


def test_a_stride_wanted_twice_gives_the_last_two_maps():
    assert Backbone("resnet18", [8, 16, 16], pretrained=False, dilated=True).channels == [128, 256, 512]
    assert Backbone("resnet18", [16], pretrained=False, dilated=True).channels == [512]
    assert Backbone("resnet18", [8, 16], pretrained=False).channels == [128, 256]
