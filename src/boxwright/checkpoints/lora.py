"""Adapters: a network that rests, and beside its layers small ones that learn ("LoRA", Hu et al. 2021).

        x ──┬── the layer, W at rest ──────────────────────┬── sum
            └── A, down to `rank` values ── B, up again ───┘      B begins at zero

Only A and B, and what no known weights stand for (the head of new classes), learn and are stored: a file of a few MB
beside a base that many adapters share. The network at rest is either a timm backbone with its published weights, or a
whole checkpoint.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from boxwright.checkpoints.locate import BESIDE
from boxwright.config import require
from boxwright.types import Detector

SCALE = 2  # of what B adds, whatever the rank: peft's alpha is twice the rank
DOWN = ".lora_A.default.weight"  # behind a layer's name: the key of A


@dataclass(frozen=True)
class Base:
    """The network that an adapter was trained on.

    Attributes:
        name: of a timm model, or of a checkpoint as the user gave it.
        checksum: SHA-256 of its tensors, see `checksum`.
        path: of the checkpoint; empty for a timm model.
        relative: the same, as seen from the folder of the adapter.
    """

    name: str
    checksum: str
    path: str = ""
    relative: str = ""

    def seen_from(self, folder: Path) -> "Base":
        """With the path relative to the folder, where there is one."""
        if self.path:
            with suppress(ValueError):  # on another drive
                return replace(self, relative=os.path.relpath(self.path, folder.resolve()))
        return self

    def places(self, adapter: Path) -> list[Path]:
        """Where the base of an adapter's file may be."""
        relative = [adapter.parent / self.relative] if self.relative else []
        return [Path(self.path), *relative, adapter.with_name(BESIDE)]


def adapt(detector: Detector, rank: int | None, source: Detector | None, name: str, path: Path | None = None) -> None:
    """Put the backbone at rest and, with a rank, adapters beside its layers; `detector` is changed in place.

    With a `source`, the layers behind the backbone whose weights come from it unchanged get adapters, too. What is left
    (norms, embeddings, layers smaller than their adapters, the rows of new classes) learns in full.

    Args:
        detector: as it would be trained in full.
        rank: values between A and B; None has no adapters, and everything but the backbone learns.
        source: the checkpoint that `detector` begins from; None where it begins from its timm backbone.
        name, path: of the base.

    Raises:
        UserError: if no layer is large enough for an adapter of this rank.
    """
    tensors = backbone_state(detector) if source is None else source.state_dict()
    base = Base(name, checksum(tensors), str(path or ""))
    layers = [] if rank is None else _layers(detector, _unchanged(detector, tensors), rank)
    require(rank is None or layers, f"no layer is large enough for an adapter of rank {rank}; take a smaller --rank.")
    resting = {key for key in tensors if key.startswith(("backbone.", *(f"{layer}." for layer in layers)))}
    learning = {key for key, p in detector.named_parameters() if p.requires_grad and key not in resting}
    detector.backbone.freeze()  # its norms keep their statistics
    if layers:
        inject(detector, layers, rank or 0)
    for key, parameter in detector.named_parameters():
        parameter.requires_grad_(is_a_or_b(key) or key in learning)
    _own(detector, base)


def inject(detector: Detector, layers: Iterable[str], rank: int) -> None:
    """Put A and B beside the named layers; what the detector computes stays the same, as B is zero."""
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=list(layers)), detector)
    del detector.peft_config  # of no use here, and a second injection would be warned of it


@torch.no_grad()
def fold(detector: Detector) -> Detector:
    """The same detector, in place, with each A and B added to the weights of their layer: an ordinary one again.

    The tensors of the base are not written to; others may share them.
    """
    for note in ("adapted_from", "own_keys"):
        vars(detector).pop(note, None)
    for name, module in list(detector.named_modules()):
        if hasattr(module, "get_delta_weight"):
            layer = module.base_layer
            layer.weight = nn.Parameter(layer.weight + module.get_delta_weight("default"))  # type: ignore[operator]
            detector.set_submodule(name, layer)  # type: ignore[arg-type]
    return detector


def is_adapted(detector: Detector) -> bool:
    """Whether only an adapter of it would be stored."""
    return "adapted_from" in vars(detector)


def is_a_or_b(key: str) -> bool:
    """Whether a parameter of this name is an A or a B."""
    return ".lora_A." in key or ".lora_B." in key


def own_state(detector: Detector) -> dict[str, Tensor]:
    """What an adapter stores."""
    state, keys = detector.state_dict(), vars(detector)["own_keys"]
    return {key: value for key, value in state.items() if key in keys}


def _own(detector: Detector, base: Base) -> None:
    """Note the base, and what is not in it: parameters that learn, and buffers outside of the resting backbone."""
    parameters = dict(detector.named_parameters(remove_duplicate=False))
    vars(detector)["adapted_from"] = base
    vars(detector)["own_keys"] = frozenset(
        key
        for key in detector.state_dict()
        if (parameters[key].requires_grad if key in parameters else not key.startswith("backbone."))
    )


def lay_over(base: Base, resting: Mapping[str, Tensor], own: Mapping[str, Tensor], detector: Detector) -> None:
    """Fill a detector with an adapter's own tensors and, for the rest, with those of its base, which are not copied."""
    vars(detector).update(adapted_from=base, own_keys=frozenset(own))
    downs = {key.removesuffix(DOWN): len(value) for key, value in own.items() if key.endswith(DOWN)}
    if downs:
        inject(detector, downs, max(downs.values()))
    keys = detector.state_dict()
    rest = {key: resting[key.replace(".base_layer.", ".")] for key in keys if key not in own}
    detector.load_state_dict(rest | dict(own), assign=True)


def backbone_state(detector: Detector) -> dict[str, Tensor]:
    """The tensors that come from timm, under their names in the detector."""
    known = {id(parameter) for parameter in detector.backbone_parameters()}
    ours = {key for key, parameter in detector.named_parameters() if id(parameter) not in known}
    state = detector.state_dict()
    return {key: value for key, value in state.items() if key.startswith("backbone.") and key not in ours}


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, kinds, shapes and values, in the order of the names, wherever they lie in memory."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _unchanged(detector: Detector, tensors: Mapping[str, Tensor]) -> set[str]:
    """Keys of the detector whose values are those of the base; others have rows of other classes."""
    own = detector.state_dict()
    return {key for key, value in tensors.items() if key in own and torch.equal(own[key], value)}


def _layers(detector: Detector, known: set[str], rank: int) -> list[str]:
    """Linear layers and convolutions that would learn, begin from known weights, and are larger than their adapter."""
    called = _called(detector)

    def fits(name: str, module: nn.Module) -> bool:
        if not (_is_plain(module) and f"{name}.weight" in known and module.weight.requires_grad):
            return False
        weight: Tensor = module.weight  # type: ignore[assignment]
        adapter = rank * (weight[0].numel() + len(weight))
        return 2 * adapter <= weight.numel() and (not name.startswith("backbone.") or name in called)

    return [name for name, module in detector.named_modules() if fits(name, module)]


def _is_plain(module: nn.Module) -> bool:
    """A layer that peft can stand beside: no groups and no dilation, which it does not know."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


@torch.no_grad()
def _called(detector: Detector) -> set[str]:
    """Layers of the backbone that run as modules: some networks of timm only read the weights of theirs, past any
    adapter, and some have layers that are not used for feature maps.
    """
    called: set[str] = set()
    backbone: nn.Module = detector.backbone  # type: ignore[assignment]
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.add(f"backbone.{name}"))
        for name, module in backbone.named_modules()
    ]
    device, training = next(backbone.parameters()).device, backbone.training
    backbone.eval()(torch.zeros(1, 3, detector.image_size, detector.image_size, device=device))
    backbone.train(training)
    for hook in hooks:
        hook.remove()
    return called
