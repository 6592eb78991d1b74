"""Deformable DETR in its three forms: the sampling operator, every stage of the network, losses, detections."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import build, by_name, check_detections, check_input, compare_losses, images, targets_of
from torch import Tensor

from boxwright.models.deformable import Deformable, DeformableOutputs
from boxwright.models.layers.deformable_attention import SamplingPoints, gather_points
from boxwright.models.layers.deformable_transformer import MultiScaleCells, Queries
from boxwright.models.layers.post_norm import sine_2d
from boxwright.models.losses.focal import focal_cost
from boxwright.models.losses.set_criterion import LayerPredictions, Targets, assign, box_losses, class_loss
from golden import Case, Result, attempt, cases, read_arrays, thin


def check(folder: Path) -> Iterator[Result]:
    """The operator, and all cases of a folder."""
    if (folder / "msda_core_op.npz").is_file():
        yield attempt(f"{folder.name} operator", check_operator, folder)
    for case in cases(folder):
        yield attempt(case.name, check_case, case)


def check_operator(folder: Path) -> Result:
    """Weighted sums of sampled values, also at points beyond the edges, and all three gradients."""
    result, golden = Result(f"{folder.name} operator"), read_arrays(folder / "msda_core_op.npz")
    names = ("value", "sampling_locations", "attention_weights")
    given = [golden.get(name, golden.get(f"{name}_xy")) for name in names]
    values, points, weights = (torch.from_numpy(array).requires_grad_() for array in given if array is not None)
    shapes = [(int(height), int(width)) for height, width in golden["spatial_shapes_hw"]]
    sums = gather_points(values, shapes, SamplingPoints(points, weights))
    result.compare("output", sums.detach(), golden["output_float32"], limit=1e-6)
    gradients = torch.autograd.grad(sums, (values, points, weights), torch.from_numpy(golden["cotangent"]))
    for name, ours in zip(names, gradients, strict=True):
        result.compare(f"gradient of {name}", ours, golden[f"grad_{name}"])
    return result


@torch.no_grad()
def check_case(case: Case) -> Result:
    """The stages one after the other, each computed from ours before it, then losses and boxes."""
    network, _ = build(case)
    assert isinstance(network, Deformable)
    result = Result(case.name)
    canvas_BCHW, sizes_B2 = images(case)
    check_input(network, canvas_BCHW, sizes_B2, case, result)
    features: list[Tensor] = []
    hook = network.backbone.register_forward_hook(lambda _, __, output: features.extend(output))
    outputs = network(canvas_BCHW, sizes_B2)
    hook.remove()
    check_cells(features, outputs.cells, case, result)
    queries, order_BQ = start_queries(network, outputs, case, result)
    states: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: states.append(output)) for layer in network.decoder.layers
    ]
    layers = network.predict_layers(outputs.cells, queries)
    for hook in hooks:
        hook.remove()
    states_LBQE = torch.stack(states)
    if order_BQ is not None:  # theirs may start with equally good proposals in another order
        states_LBQE = in_order(states_LBQE, order_BQ)
        layers = LayerPredictions(*(in_order(x, order_BQ) for x in layers))
        queries = Queries(*(in_order(x[None], order_BQ)[0] if x is not None else None for x in queries))
    check_decoder(network, queries, states_LBQE, layers, case, result)
    check_detections(network.decode(outputs), outputs.valid_ratios_B4, case, result)
    check_losses(layers, case, result)
    return result


def check_cells(features: list[Tensor], cells: MultiScaleCells, case: Case, result: Result) -> None:
    """Feature maps of the backbone, masks, position codes, and the encoded cells that are image."""
    golden, sizes = case.golden, [height * width for height, width in cells.shapes]
    valid = [
        level_BM.unflatten(1, shape)
        for level_BM, shape in zip((~cells.padding_BT).split(sizes, 1), cells.shapes, strict=True)
    ]
    for level, feature_BCHW in enumerate(features):
        name = next((name for name in golden if name.startswith(f"feat{level}")), "")
        if name:
            result.compare("feat", thin(feature_BCHW, golden[name]), golden[name], case.noise(f"feat{level}"))
        if f"feat_mask{level}" in golden:
            result.same("mask", valid[level], golden[f"feat_mask{level}"])
    for level, valid_BHW in enumerate(valid):
        if f"pos{level}_valid_only" in golden:
            codes_BME = sine_2d(valid_BHW, cells.x_BTE.shape[-1], True, shift=0.5) * valid_BHW.flatten(1)[..., None]
            theirs = golden[f"pos{level}_valid_only"]
            result.compare("pos_embed", thin(codes_BME.mT.unflatten(2, valid_BHW.shape[1:]), theirs), theirs)
    if "encoder_valid_tokens" in golden:
        result.same("mask", ~cells.padding_BT, golden["encoder_valid_tokens"])
    valid_BTE = cells.x_BTE.masked_fill(cells.padding_BT[..., None], 0)
    theirs = golden["encoder_tokens_step4"]
    result.compare("encoder", thin(valid_BTE, theirs), theirs, case.noise("encoder"))


def start_queries(
    network: Deformable, outputs: DeformableOutputs, case: Case, result: Result
) -> tuple[Queries, Tensor | None]:
    """The queries that enter the decoder and, with proposals, the index in ours of each of theirs."""
    golden, proposals = case.golden, outputs.proposals
    if proposals is None:
        return network.start_queries(outputs.cells, outputs.proposals), None
    stages = {
        "enc_outputs_class_tokens_step8": proposals.logits_BTR,
        "enc_outputs_class0": proposals.logits_BTR[..., 0],
        "enc_outputs_coord_logits_tokens_step4": proposals.boxes_BT4,
    }
    for name, ours in stages.items():
        if name in golden:
            kind = "boxes" if "coord" in name else "logits"
            one, other = thin(ours, golden[name]), golden[name]
            if kind == "boxes":  # before the sigmoid, some are infinite
                one, other = (torch.from_numpy(np.ascontiguousarray(x)).sigmoid() for x in (one, other))
            result.compare(f"proposed_{kind}", one, other, case.noise("enc_outputs_class"))
    queries = network.start_queries(outputs.cells, outputs.proposals)
    if "topk_index" not in golden:
        return queries, None
    ours_BQ, theirs_BQ = network._best(proposals), torch.from_numpy(golden["topk_index"]).long()
    result.same("proposals used", ours_BQ.sort(1).values, theirs_BQ.sort(1).values)
    return queries, (theirs_BQ[:, :, None] == ours_BQ[:, None]).long().argmax(2)


def in_order(x_LBQE: Tensor, order_BQ: Tensor) -> Tensor:
    """The queries of each image in this order."""
    return x_LBQE.gather(2, order_BQ[None, :, :, None].expand(len(x_LBQE), -1, -1, x_LBQE.shape[-1]))


def check_decoder(
    network: Deformable, queries: Queries, states_LBQE: Tensor, layers: LayerPredictions, case: Case, result: Result
) -> None:
    """Reference points, states and predictions of the decoder's layers."""
    golden, boxes_LBQ4 = case.golden, layers.boxes_LBQ4
    references_LBQX = boxes_LBQ4 if network.config.refine else queries.boxes_BQX.expand(len(boxes_LBQ4), -1, -1, -1)
    stages = {
        "init_reference_points": queries.boxes_BQX,
        "intermediate_reference_points_step10": references_LBQX.transpose(0, 1),
        "decoder_layers_queries_step30": states_LBQE.transpose(0, 1),
        "decoder_last": states_LBQE[-1],
        "logits_layers_queries_step10": layers.logits_LBQR,
        "logits_last": layers.logits_LBQR[-1],
        "boxes": boxes_LBQ4,
    }
    names = {"init": "references", "intermediate": "references", "decoder": "decoder", "logits": "logits"}
    noise = {
        "references": ("init_reference_points", "intermediate_reference_points"),
        "decoder": ("decoder_layers",),
        "logits": ("logits",),
        "boxes": ("boxes",),
    }
    for name, ours in stages.items():
        if name in golden:
            stage = names.get(name.split("_")[0], name)
            result.compare(stage, thin(ours, golden[name]), golden[name], case.noise(*noise[stage]))


def check_losses(layers: LayerPredictions, case: Case, result: Result) -> None:
    """The losses of the last layer's stored outputs, and of all our layers."""
    logits, boxes = (torch.from_numpy(case.golden[name]) for name in ("logits_last", "boxes"))
    stored = LayerPredictions(logits[None], boxes[-1:])
    for facts in (case.summary[name] for name in ("A", "B") if name in case.summary):
        targets, theirs = targets_of(facts["targets"]), facts.get("losses") or facts["loss_dict"]
        config = case.manifest["config"]
        compare_losses(result, "loss", losses(stored, targets, config, len(boxes)), theirs)
        compare_losses(result, "own loss", losses(layers, targets, config, len(boxes)), theirs, 5 * case.noise("boxes"))


def losses(layers: LayerPredictions, targets: Targets, config: Mapping[str, Any], count: int) -> dict[str, float]:
    """Unweighted losses, matched at the costs of the settings: Hugging Face's differ from the authors'.

    Args:
        layers: predictions of the last of ``count`` layers.
        targets: the objects.
        config: the settings.
        count: the number of layers of the network.
    """
    cost, l1, overlap = (config.get(f"{name}_cost", usual) for name, usual in (("class", 2), ("bbox", 5), ("giou", 2)))
    matched_LBN = assign(layers, targets, layers.logits_LBQR, lambda x: cost * focal_cost(x.sigmoid()), l1, overlap)
    classes_L = class_loss(layers, targets, matched_LBN, aware=False)
    return by_name(classes_L, box_losses(layers, targets, matched_LBN), count)
