"""DETR, the authors' and Hugging Face's: every stage of the network, assignments, losses, gradients, detections."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import build, by_name, check_detections, check_input, compare_losses, images, targets_of
from torch import Tensor

from boxwright.interop.foreign import ForeignCheckpoint
from boxwright.models.detr import Detr, EncodedCells, set_loss
from boxwright.models.losses.set_criterion import LayerPredictions, Targets
from golden import Case, Result, attempt, cases, is_sharp, read_arrays, thin


def check(folder: Path) -> Iterator[Result]:
    """All cases of a folder, and those of networks made with `auxiliary_loss`, which compute something else."""
    for case in cases(folder):
        yield attempt(case.name, check_case, case)
        name = case.name.split()[-1]
        other = folder / f"quirk_auxiliary_loss_true_{name}.npz"
        if other.is_file():
            golden = {key: value for key, value in case.golden.items() if key.startswith(("override:", "input"))}
            twice = replace(case, name=f"{case.name} auxiliary_loss", golden=golden | read_arrays(other))
            yield attempt(twice.name, check_twice, twice)


def check_case(case: Case) -> Result:
    """The stages one after the other, each computed from ours before it, then losses and boxes."""
    network, foreign = build(case)
    assert isinstance(network, Detr)
    result, golden = Result(case.name), case.golden
    canvas_BCHW, sizes_B2 = images(case)
    check_input(network, canvas_BCHW, sizes_B2, case, result)
    stage_outputs = record_stages(network, canvas_BCHW, sizes_B2)
    cells: EncodedCells = stage_outputs["encoder"]
    outputs = stage_outputs["outputs"]
    masked_BHW = ~cells.valid_B11M.flatten(1).unflatten(1, cells.grid)
    if "feat_mask" in golden:  # the authors' is True on padding, Hugging Face's on the image
        result.same("mask", masked_BHW, golden["feat_mask"] ^ ("model_type" in case.manifest["config"]))
    stages = {
        "feat": stage_outputs["feat"],
        "pos_embed": cells.positions_BME.mT.unflatten(2, cells.grid),
        "input_proj": stage_outputs["input_proj"],
        "encoder": cells.x_BME,
        "decoder": torch.stack(stage_outputs["decoder"]),
        "decoder_last": stage_outputs["decoder"][-1],
        "logits": outputs.layers.logits_LBQR,
        "boxes": outputs.layers.boxes_LBQ4,
    }
    for stage, ours in stages.items():
        if stage in golden:
            result.compare(stage, thin(ours, golden[stage]), golden[stage], case.noise(stage))
    check_detections(network.decode(outputs), outputs.valid_ratios_B4, case, result)
    check_losses(network, foreign, case, outputs.layers, result)
    return result


@torch.no_grad()
def record_stages(network: Detr, canvas_BCHW: Tensor, sizes_B2: Tensor) -> dict[str, Any]:
    """The outputs of the network for these images, and of its modules under the names of the stages."""
    stages: dict[str, Any] = {}
    modules = {"feat": network.backbone, "input_proj": network.projection, "encoder": network.encoder}
    hooks = [
        module.register_forward_hook(lambda _, __, output, stage=stage: stages.update({stage: output}))
        for stage, module in (modules | {"decoder": network.decoder}).items()
    ]
    stages["outputs"] = network(canvas_BCHW, sizes_B2)
    stages["feat"] = stages["feat"][-1]
    for hook in hooks:
        hook.remove()
    return stages


def check_losses(
    network: Detr, foreign: ForeignCheckpoint, case: Case, layers: LayerPredictions, result: Result
) -> None:
    """The losses of the stored outputs and, in the sharp cases, whose assignments are stable, of ours."""
    stored = LayerPredictions(*(torch.from_numpy(case.golden[name]) for name in ("logits", "boxes")))
    for facts in (case.summary[name] for name in ("A", "B") if name in case.summary):
        targets = targets_of(facts["targets"])
        check_set_loss(stored, targets, facts, result, "loss")
        if is_sharp(case.golden):
            check_set_loss(layers, targets, facts, result, "own loss")
        if "grads" in facts:
            check_gradients(network, foreign, case, targets, facts["grads"], result)


def check_set_loss(
    layers: LayerPredictions, targets: Targets, facts: Mapping[str, Any], result: Result, stage: str
) -> None:
    """The assignment and the losses of given predictions."""
    terms, matched_LBN = set_loss(layers, targets)
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
    network: Detr, foreign: ForeignCheckpoint, case: Case, targets: Targets, golden: Mapping[str, Any], result: Result
) -> None:
    """Norm and first values of the stored gradients, relative to the norm.

    Only in the sharp cases: rounding decides the assignments of the others. It also decides which rectifiers of the
    ResNet are open, so the same in float64 tells how much of a difference is rounding.
    """
    if not is_sharp(case.golden):
        return
    ours, exact = (gradients(twin, foreign, case, targets) for twin in (network, deepcopy(network).double()))
    for source, facts in golden.items():
        stage = "gradients of backbone" if source.startswith("backbone") else "gradients"
        one, twin = ours[source] / facts["l2"], exact[source] / facts["l2"]
        result.compare_training(stage, one.norm(), 1, twin.norm())
        result.compare_training(stage, one[:8], torch.tensor(facts["first8"]) / facts["l2"], twin[:8])


def gradients(network: Detr, foreign: ForeignCheckpoint, case: Case, targets: Targets) -> dict[str, Tensor]:
    """Flat gradients of all parameters by the original's name, in the precision of the network."""
    network.zero_grad()
    precision = network.backbone.mean.dtype
    canvas_BCHW, sizes_B2 = images(case)
    layers = network(canvas_BCHW.to(precision), sizes_B2).layers
    terms, _ = set_loss(layers, targets)
    torch.stack(list(terms.values())).sum().backward()
    parameters, by_source = dict(network.named_parameters()), dict[str, list[Tensor]]()
    for name, source in foreign.sources.items():
        if name in parameters and (gradient := parameters[name].grad) is not None:
            by_source.setdefault(source, []).append(gradient.flatten())
    return {source: torch.cat(parts) for source, parts in by_source.items()}


@torch.no_grad()
def check_twice(case: Case) -> Result:
    """The outputs of a network whose decoder feeds the output of its norm into the next layer."""
    network, _ = build(case, auxiliary_loss=True)
    assert isinstance(network, Detr)
    result = Result(case.name)
    layers = network(*images(case)).layers
    for stage, ours in {"logits": layers.logits_LBQR, "boxes": layers.boxes_LBQ4}.items():
        result.compare(stage, ours, case.golden[stage], case.noise(stage))
    facts = case.summary.get("quirk_auxiliary_loss_true", {})
    if "A" in case.summary and "loss_dict" in facts:
        stored = LayerPredictions(*(torch.from_numpy(case.golden[name]) for name in ("logits", "boxes")))
        check_set_loss(stored, targets_of(case.summary["A"]["targets"]), facts, result, "loss")
    return result
