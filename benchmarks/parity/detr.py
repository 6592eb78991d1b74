"""DETR, the authors' and Hugging Face's: every stage of the network, assignments, losses, gradients, what is found."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import build, by_name, check_found, check_input, compare_losses, images, targets_of
from torch import Tensor

from boxwright.interop.foreign import ForeignCheckpoint
from boxwright.models.detr import Detr, EncodedCells, set_loss
from boxwright.models.losses.set_criterion import LayerPredictions, Targets
from golden import Case, Result, attempt, cases, is_sharp, read_arrays, thin


def check(folder: Path) -> Iterator[Result]:
    """All cases of a folder; and those of networks trained with `auxiliary_loss`, which compute something else."""
    for case in cases(folder):
        yield attempt(case.name, check_case, case)
        name = case.name.split()[-1]
        other = folder / f"quirk_auxiliary_loss_true_{name}.npz"
        if other.is_file():
            golden = {key: value for key, value in case.golden.items() if key.startswith(("override:", "input"))}
            twice = replace(case, name=f"{case.name} auxiliary_loss", golden=golden | read_arrays(other))
            yield attempt(twice.name, check_twice, twice)


def check_case(case: Case) -> Result:
    """The stages one after the other, each from ours, then losses and boxes."""
    network, found = build(case)
    assert isinstance(network, Detr)
    result, golden = Result(case.name), case.golden
    canvas_BCHW, sizes_B2 = images(case)
    check_input(network, canvas_BCHW, sizes_B2, case, result)
    seen = watch(network, canvas_BCHW, sizes_B2)
    cells: EncodedCells = seen["encoder"]
    masked_BHW = ~cells.valid_B11M.flatten(1).unflatten(1, cells.grid)
    if "feat_mask" in golden:  # the authors' is True on padding, Hugging Face's on the image
        result.same("mask", masked_BHW, golden["feat_mask"] ^ ("model_type" in case.manifest["config"]))
    stages = {
        "feat": seen["feat"],
        "pos_embed": cells.positions_BME.mT.unflatten(2, cells.grid),
        "input_proj": seen["input_proj"],
        "encoder": cells.x_BME,
        "decoder": torch.stack(seen["decoder"]),
        "decoder_last": seen["decoder"][-1],
        "logits": seen["raw"].layers.logits_LBQR,
        "boxes": seen["raw"].layers.boxes_LBQ4,
    }
    for stage, ours in stages.items():
        if stage in golden:
            result.compare(stage, thin(ours, golden[stage]), golden[stage], case.limit(stage))
    check_found(network.decode(seen["raw"]), seen["raw"].valid_ratios_B4, case, result)
    check_losses(network, found, case, seen["raw"].layers, result)
    return result


@torch.no_grad()
def watch(network: Detr, canvas_BCHW: Tensor, sizes_B2: Tensor) -> dict[str, Any]:
    """What the network makes of the images, and what its parts say."""
    seen: dict[str, Any] = {}
    parts = {"feat": network.backbone, "input_proj": network.projection, "encoder": network.encoder}
    hooks = [
        part.register_forward_hook(lambda _, __, output, stage=stage: seen.update({stage: output}))
        for stage, part in (parts | {"decoder": network.decoder}).items()
    ]
    seen["raw"] = network(canvas_BCHW, sizes_B2)
    seen["feat"] = seen["feat"][-1]
    for hook in hooks:
        hook.remove()
    return seen


def check_losses(network: Detr, found: ForeignCheckpoint, case: Case, said: LayerPredictions, result: Result) -> None:
    """Of the stored outputs, and, where assignments are stable (the sharp cases), of ours, too."""
    stored = LayerPredictions(*(torch.from_numpy(case.golden[name]) for name in ("logits", "boxes")))
    for facts in (case.summary[name] for name in ("A", "B") if name in case.summary):
        truth = targets_of(facts["targets"])
        check_set(stored, truth, facts, result, "loss")
        if is_sharp(case.golden):
            check_set(said, truth, facts, result, "own loss")
        if "grads" in facts:
            check_gradients(network, found, case, truth, facts["grads"], result)


def check_set(said: LayerPredictions, truth: Targets, facts: Mapping[str, Any], result: Result, stage: str) -> None:
    """The assignment and the losses of given outputs."""
    terms, matched_LBN = set_loss(said, truth)
    ours = by_name(terms["class"], terms, len(matched_LBN))
    theirs = facts.get("losses") or facts["loss_dict"]
    compare_losses(result, stage, ours, theirs)
    if "weighted_total" in facts:
        compare_losses(result, stage, {"": float(sum(x.sum() for x in terms.values()))}, {"": facts["weighted_total"]})
    for layer, pairs in enumerate(facts.get("hungarian_per_layer_per_image", ())):
        for image, pair in enumerate(pairs):
            order = torch.tensor(pair["tgt"], dtype=torch.long)
            result.same(
                f"assignment of {stage.replace('loss', 'outputs')}", matched_LBN[layer, image, order], pair["src"]
            )


def check_gradients(
    network: Detr, found: ForeignCheckpoint, case: Case, truth: Targets, golden: Mapping[str, Any], result: Result
) -> None:
    """Length and first values of the gradients that are stored, in units of the length; of the sharp cases, since
    the assignments of the others hang on rounding.
    """
    if not is_sharp(case.golden):
        return
    network.zero_grad()
    terms, _ = set_loss(network(*images(case)).layers, truth)
    torch.stack(list(terms.values())).sum().backward()
    parameters = dict(network.named_parameters())
    for source, facts in golden.items():
        parts = [parameters[name].grad for name, theirs in found.sources.items() if theirs == source]
        gradient = torch.cat([part.flatten() for part in parts if part is not None])
        # Rounding decides which rectifiers of a ResNet are open: in float32 and float64 they are this far apart.
        stage, limit = ("gradients of backbone", 5e-3) if source.startswith("backbone") else ("gradients", None)
        result.compare(stage, gradient.norm() / facts["l2"], 1, limit)
        result.compare(stage, gradient[:8] / facts["l2"], torch.tensor(facts["first8"]) / facts["l2"], limit)


@torch.no_grad()
def check_twice(case: Case) -> Result:
    """The outputs of a network whose decoder feeds its norm back."""
    network, _ = build(case, auxiliary_loss=True)
    assert isinstance(network, Detr)
    result = Result(case.name)
    said = network(*images(case)).layers
    for stage, ours in {"logits": said.logits_LBQR, "boxes": said.boxes_LBQ4}.items():
        result.compare(stage, ours, case.golden[stage], case.limit(stage))
    facts = case.summary.get("quirk_auxiliary_loss_true", {})
    if "A" in case.summary and "loss_dict" in facts:
        stored = LayerPredictions(*(torch.from_numpy(case.golden[name]) for name in ("logits", "boxes")))
        check_set(stored, targets_of(case.summary["A"]["targets"]), facts, result, "loss")
    return result
