"""Adapters: a frozen network, and small trainable matrices beside its layers ("LoRA", Hu et al. 2021).

        x ──┬── frozen layer W ──────────────────────────┬── sum
            └── A, to `rank` values ── B, to all again ──┘      B starts at zero

Only A, B and the layers without known weights (the head of new classes) are trained and stored: a file of a few MB,
while many adapters share one base. The base is a timm backbone with its published weights, or a whole checkpoint.
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

from boxwright.checkpoints.locate import BASE_FILE
from boxwright.config import require
from boxwright.types import Detector

SCALE = 2  # of what A and B add, whatever the rank: peft's alpha is twice the rank
A_KEY = ".lora_A.default.weight"  # after the name of a layer: the key of A


@dataclass(frozen=True)
class Base:
    """The network that an adapter was trained on.

    Attributes:
        name: a timm model, or the path of a checkpoint as the user gave it.
        checksum: SHA-256 of its tensors, see `checksum`.
        path: that of the checkpoint; empty for a timm model.
        relative: the same path, relative to the folder of the adapter.
    """

    name: str
    checksum: str
    path: str = ""
    relative: str = ""

    def relative_to(self, folder: Path) -> "Base":
        """The same with `relative` set, where there is a path."""
        if self.path:
            with suppress(ValueError):  # on another drive
                return replace(self, relative=os.path.relpath(self.path, folder.resolve()))
        return self

    def candidates(self, adapter: Path) -> list[Path]:
        """Where the base of this adapter file may lie."""
        relative = [adapter.parent / self.relative] if self.relative else []
        return [Path(self.path), *relative, adapter.with_name(BASE_FILE)]


def adapt(detector: Detector, rank: int | None, source: Detector | None, name: str, path: Path | None = None) -> None:
    """Freeze the backbone in place and, with a rank, put adapters beside its layers.

    With a `source`, the layers after the backbone whose weights are those of the source get adapters, too. The rest
    (norms, embeddings, layers smaller than their adapters, rows of new classes) is trained in full.

    Args:
        detector: as it would be trained in full.
        rank: values between A and B; None for no adapters: everything but the backbone is trained.
        source: the checkpoint that `detector` begins from; None where it begins from its timm backbone.
        name, path: see `Base`.

    Raises:
        UserError: if no layer is large enough for an adapter of this rank.
    """
    tensors = backbone_state(detector) if source is None else source.state_dict()
    base = Base(name, checksum(tensors), str(path or ""))
    layers = [] if rank is None else _layers_to_adapt(detector, _unchanged(detector, tensors), rank)
    require(rank is None or layers, f"no layer is large enough for an adapter of rank {rank}; take a smaller --rank.")
    frozen = {key for key in tensors if key.startswith(("backbone.", *(f"{layer}." for layer in layers)))}
    trained = {key for key, p in detector.named_parameters() if p.requires_grad and key not in frozen}
    detector.backbone.freeze()  # the statistics of its batch norms
    if layers:
        inject(detector, layers, rank or 0)
    for key, parameter in detector.named_parameters():
        parameter.requires_grad_(is_a_or_b(key) or key in trained)
    _mark_adapted(detector, base)


def inject(detector: Detector, layers: Iterable[str], rank: int) -> None:
    """Put A and B beside the named layers; outputs stay the same, since B is zero."""
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=list(layers)), detector)
    del detector.peft_config  # unused here, and with it peft would warn of a second injection


@torch.no_grad()
def merge_adapter(detector: Detector) -> Detector:
    """Add each A and B to the weights of their layer, in place: the detector is an ordinary one again.

    Layers get new tensors, since others may share those of the base.
    """
    for mark in ("adapted_from", "own_keys"):
        vars(detector).pop(mark, None)
    for name, module in list(detector.named_modules()):
        if hasattr(module, "get_delta_weight"):
            layer = module.base_layer
            layer.weight = nn.Parameter(layer.weight + module.get_delta_weight("default"))  # type: ignore[operator]
            detector.set_submodule(name, layer)  # type: ignore[arg-type]
    return detector


def is_adapted(detector: Detector) -> bool:
    """Whether it has a base, so that only an adapter of it is stored."""
    return "adapted_from" in vars(detector)


def is_a_or_b(key: str) -> bool:
    """Whether a parameter of this name is an A or a B."""
    return ".lora_A." in key or ".lora_B." in key


def own_state(detector: Detector) -> dict[str, Tensor]:
    """The tensors that an adapter file stores."""
    state, keys = detector.state_dict(), vars(detector)["own_keys"]
    return {key: value for key, value in state.items() if key in keys}


def _mark_adapted(detector: Detector, base: Base) -> None:
    """Keep the base, and the keys that are not in it: trained parameters, and buffers outside the frozen backbone."""
    parameters = dict(detector.named_parameters(remove_duplicate=False))
    vars(detector)["adapted_from"] = base
    vars(detector)["own_keys"] = frozenset(
        key
        for key in detector.state_dict()
        if (parameters[key].requires_grad if key in parameters else not key.startswith("backbone."))
    )


def load_adapter(detector: Detector, base: Base, frozen: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Load an adapter's own tensors, and for the rest those of its base (`frozen`), which are not copied."""
    vars(detector).update(adapted_from=base, own_keys=frozenset(own))
    ranks = {key.removesuffix(A_KEY): len(value) for key, value in own.items() if key.endswith(A_KEY)}
    if ranks:
        inject(detector, ranks, max(ranks.values()))
    keys = detector.state_dict()
    rest = {key: frozen[key.replace(".base_layer.", ".")] for key in keys if key not in own}
    detector.load_state_dict(rest | dict(own), assign=True)


def backbone_state(detector: Detector) -> dict[str, Tensor]:
    """The pretrained tensors of the backbone, under their names in the detector."""
    known = {id(parameter) for parameter in detector.backbone_parameters()}
    others = {key for key, parameter in detector.named_parameters() if id(parameter) not in known}
    state = detector.state_dict()
    return {key: value for key, value in state.items() if key.startswith("backbone.") and key not in others}


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, sorted by name; the device does not matter."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _unchanged(detector: Detector, tensors: Mapping[str, Tensor]) -> set[str]:
    """Keys whose values are equal in detector and base; others have rows of other classes."""
    own = detector.state_dict()
    return {key for key, value in tensors.items() if key in own and torch.equal(own[key], value)}


def _layers_to_adapt(detector: Detector, known: set[str], rank: int) -> list[str]:
    """Trainable linear layers and convolutions with known weights, at least twice as large as their adapter."""
    called = _called(detector)

    def fits(name: str, module: nn.Module) -> bool:
        if not (_can_adapt(module) and f"{name}.weight" in known and module.weight.requires_grad):
            return False
        weight: Tensor = module.weight  # type: ignore[assignment]
        adapter = rank * (weight[0].numel() + len(weight))
        return 2 * adapter <= weight.numel() and (not name.startswith("backbone.") or name in called)

    return [name for name, module in detector.named_modules() if fits(name, module)]


def _can_adapt(module: nn.Module) -> bool:
    """Whether peft supports the layer: without groups and dilation."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


@torch.no_grad()
def _called(detector: Detector) -> set[str]:
    """Names of the backbone's layers that are called as modules.

    Some timm networks only read the weights of a layer, past any adapter; some have layers that no feature map needs.
    """
    called: set[str] = set()
    backbone: nn.Module = detector.backbone
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
