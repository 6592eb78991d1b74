"""What the checks of `detr` and `deformable` share: the network of a manifest, its images, losses and detections."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boxwright.interop import deformable, detr
from boxwright.interop.foreign import ForeignCheckpoint
from boxwright.models.layers.padding import cut
from boxwright.models.losses.set_criterion import Targets
from boxwright.types import Detector, Predictions
from golden import Case, Result, canvas, is_sharp, weights

ORIGINALS = [(480, 640), (375, 500)]  # heights and widths of the files that the images stand for


def build(case: Case, **options: Any) -> tuple[Detector, ForeignCheckpoint]:
    """The network with the weights of the formula, imported as a file would be, with all class numbers as classes.

    Args:
        case: weights and settings.
        options: settings that replace the case's.
    """
    values = weights(case.manifest, case.golden, case.summary)
    tensors = {name: torch.from_numpy(value) for name, value in values.items()}
    settings = {**case.manifest["config"], **options}
    foreign = detr.convert(tensors, settings) or deformable.convert(tensors, settings)
    assert foreign is not None, "no tensors of such a network"
    assert not foreign.unknown, f"tensors that contradict others: {foreign.unknown}"
    network = foreign.detector(foreign.config, tuple(map(str, foreign.ids)), pretrained=False)
    network.load_state_dict(dict(foreign.state))
    return network.eval(), foreign


def images(case: Case) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] on a common canvas, and their sizes."""
    canvas_BHWC = canvas(case.sizes, is_sharp(case.golden))
    return torch.from_numpy(canvas_BHWC).permute(0, 3, 1, 2).float(), torch.tensor(case.sizes)


def check_input(network: Any, canvas_BCHW: Tensor, sizes_B2: Tensor, case: Case, result: Result) -> None:
    """The padded and normalised pixels."""
    filled_BCHW, _ = cut(canvas_BCHW, sizes_B2, network.backbone.mean)
    pixels_BCHW = (filled_BCHW - network.backbone.mean) / network.backbone.std
    result.compare("input", pixels_BCHW[..., ::16, ::16], case.golden["input_slice"], limit=1e-5)


def targets_of(targets: Sequence[Mapping[str, Any]]) -> Targets:
    """Objects of all images, padded; their labels are rows of the classifier."""
    most = max(1, *(len(target["labels"]) for target in targets))
    boxes_BN4, rows_BN = torch.zeros(len(targets), most, 4), torch.zeros(len(targets), most, dtype=torch.long)
    valid_BN = torch.zeros_like(rows_BN, dtype=torch.bool)
    for image, target in enumerate(targets):
        count = len(target["labels"])
        boxes_BN4[image, :count] = torch.tensor(target["boxes"]).view(-1, 4)
        rows_BN[image, :count] = torch.tensor(target["labels"], dtype=torch.long)
        valid_BN[image, :count] = True
    return Targets(boxes_BN4, rows_BN, valid_BN, valid_BN.sum().float().clamp(min=1))


def by_name(classes_L: Tensor, boxes: Mapping[str, Tensor], layers: int) -> dict[str, float]:
    """Unweighted losses by layer under the originals' names; those of the last layer have no number."""
    terms = {"loss_ce": classes_L, "loss_bbox": boxes["l1"] / 5, "loss_giou": boxes["giou"] / 2}
    number = {layer: "" if layer == layers - 1 else f"_{layer}" for layer in range(layers)}
    first = layers - len(classes_L)
    return {
        f"{name}{number[first + n]}": float(value) for name, values in terms.items() for n, value in enumerate(values)
    }


def compare_losses(
    result: Result, stage: str, ours: Mapping[str, float], golden: Mapping[str, float], noise: float = 0.0
) -> None:
    """Compare the losses that both have, relative to theirs where that is over one."""
    for name in ours.keys() & golden.keys():
        unit = max(1, abs(golden[name]))
        result.compare(stage, ours[name] / unit, golden[name] / unit, noise)


def check_detections(predictions: Predictions, valid_ratios_B4: Tensor, case: Case, result: Result) -> None:
    """Compare each of the originals' detections with the nearest of ours that has the same label.

    Boxes are in shares of the image's sides, and theirs are clipped to the image, as ours are.
    """
    sizes = case.golden.get("post_target_sizes_hw", ORIGINALS)
    for image in range(len(valid_ratios_B4)):
        if f"post_{image}_boxes" not in case.golden:
            continue
        height, width = (float(side) for side in sizes[image])
        boxes_D4 = (predictions.boxes_BD4[image] / valid_ratios_B4[image]).numpy()
        scores_D, labels_D = predictions.scores_BD[image].numpy(), predictions.labels_BD[image].numpy()
        scores_M, labels_M = case.golden[f"post_{image}_scores"], case.golden[f"post_{image}_labels"]
        boxes_M4 = np.clip(case.golden[f"post_{image}_boxes"] / np.array([width, height] * 2), 0, 1)
        apart_MD = np.abs(boxes_M4[:, None] - boxes_D4).max(-1) * 5 + np.abs(scores_M[:, None] - scores_D)
        apart_MD = np.where(labels_M[:, None] == labels_D, apart_MD, 1e3)
        nearest_M = apart_MD.argmin(1)
        noise = case.noise("logits") / 4  # the sigmoid's steepest slope
        result.compare("post_scores", scores_D[nearest_M], scores_M, noise)
        result.compare("post_order", scores_D[: len(scores_M)], np.sort(scores_M)[::-1], noise)
        result.compare("post_boxes", boxes_D4[nearest_M], boxes_M4, case.noise("boxes"))
        result.same("post_labels", apart_MD.min(1) < 1e3, np.ones(len(scores_M), bool))
