"""What google-research/pix2seq computes outside its networks: tokens, sequences, images, noise boxes, schedules."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from official_networks import with_weights
from PIL import Image
from torch import Tensor, nn

from boxwright.config import Optim
from boxwright.data.augment import official_view
from boxwright.data.augment_plan import official_size
from boxwright.images import fit, fitted_size
from boxwright.interop.import_weights import read_foreign
from boxwright.models.layers.position_encoding import sincos, sincos_2d, spread
from boxwright.models.pix2seq import PADDING, Pix2Seq, Pix2SeqConfig
from boxwright.models.sequence import targets
from boxwright.models.sequence.generate import Generated
from boxwright.models.sequence.sampling import in_nucleus, in_top
from boxwright.models.sequence.vocabulary import FIRST_CLASS, NOISE, PAD, Vocabulary
from boxwright.training.optim import FLOOR, make_optimizer, rate_factor
from boxwright.types import Batch, image_mask, pixels
from golden import Arrays, Result, attempt, read_arrays, smooth_image

GREY_LEVEL = 1.5 / 255  # bytes are rounded before and after resizing


def check_data(folder: Path) -> Iterator[Result]:
    """One case for each kind of file that the folder has."""
    for start, function in (("tokens", check_tokens), ("preprocess", check_images)):
        for file in sorted(folder.glob(f"{start}*.npz")):
            yield attempt(
                file.stem, function, file.stem, read_arrays(file), json.loads(file.with_suffix(".json").read_text())
            )
    for start, function in (("noise_stats", check_noise), ("optimizer", check_optimizer)):
        for file in sorted(folder.glob(f"{start}*.json")):
            yield attempt(file.stem, function, file.stem, json.loads(file.read_text()))
    for file in sorted(folder.glob("tf_checkpoint_*.npz")):
        yield attempt(file.stem, check_checkpoint, file.stem, read_arrays(file), folder)


def check_checkpoint(name: str, golden: Arrays, folder: Path) -> Result:
    """The bytes of a TensorFlow checkpoint, imported as a user would, against the network of its manifest."""
    cases = [file.stem.removeprefix("manifest_") for file in folder.glob("manifest_*.json")]
    case = max((case for case in cases if name.startswith(f"tf_checkpoint_{case}_")), key=len)
    manifest = json.loads((folder / f"manifest_{case}.json").read_text())
    result, expected = Result(name), with_weights(manifest)
    with TemporaryDirectory() as folder_name:
        for ending in (key for key in golden if key == "index" or key.startswith("data_")):
            (Path(folder_name) / f"ckpt-6.{ending.replace('_', '-')}").write_bytes(golden[ending].tobytes())
        config = {"model": manifest["model_config"], "task": manifest["task_config"]}
        (Path(folder_name) / "config.json").write_text(json.dumps(config))
        foreign, count = read_foreign(Path(folder_name) / "ckpt-6")
    result.same("number of tensors", count, len(manifest["variables"]))
    shape = {"grid": None, "grammar": True, "dropout": 0.1, "drop_path": 0.1}  # in no file
    result.same("settings", replace(foreign.config, **shape) == replace(expected.config, **shape), True)
    state = expected.state_dict()
    result.same("names", sorted(foreign.state), sorted(state))
    for key, value in foreign.state.items():
        result.compare("tensors", value, state[key], limit=0.0)
    return result


def check_tokens(name: str, golden: Arrays, about: Mapping[str, Any]) -> Result:
    """Coordinates to tokens and back, sequences, nuclei, losses, position codes."""
    result, data = Result(name), {key: torch.from_numpy(value) for key, value in golden.items()}
    for key in data:
        if match := re.fullmatch(r"quant_(\d+)", key):
            bins = Vocabulary(int(match[1]), 1000, 1000 + int(match[1]))
            result.same("bins", bins.quantise(data["quant_in"]), data[key])
        if match := re.fullmatch(r"dequant_(\d+)", key):
            bins = Vocabulary(int(match[1]), 1000, 1000 + int(match[1]))
            result.compare("values", bins.dequantise(data[f"dequant_in_{match[1]}"]), data[key])
        if match := re.fullmatch(r"top_logits_k(\d+)_p(.+)_keep", key):
            kept = in_top(data["top_logits_in"], int(match[1])) if int(match[1]) else data["top_logits_in"]
            kept = in_nucleus(kept, float(match[2])) if float(match[2]) < 1 else kept
            result.same("nuclei", kept > -torch.inf, data[key].bool())
        if match := re.fullmatch(r"pos1d_(\d+)x(\d+)", key):
            result.compare("positions", sincos(spread(int(match[1])), int(match[2])), data[key])
        if match := re.fullmatch(r"pos2d_(\d+)x(\d+)x(\d+)", key):
            codes = sincos_2d(*(int(n) for n in match.groups()))
            result.compare("positions", codes[:: math.ceil(len(codes) / len(data[key]))], data[key])
    check_sequences(result, data, about)
    check_predictions(result, data, about["dec"])
    each = F.cross_entropy(data["loss_logits"].flatten(0, 1), data["loss_labels"].flatten(), reduction="none")
    result.compare("loss", each.view_as(data["loss_xent"]), data["loss_xent"])
    result.notes.append("label smoothing, focal and logistic losses, and other corruptions than rand_n_fake_cls")
    return result


def check_sequences(result: Result, data: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Target sequences, corrupted input classes, and weights."""
    labels, boxes = data["resp_label"], data["resp_bbox"][..., [1, 0, 3, 2]]
    classes = torch.where(labels > 0, labels + FIRST_CLASS, torch.where(labels < 0, NOISE, PAD))
    vocabulary, length = Vocabulary(), data["resp_seq"].shape[1]
    result.same(
        "sequences", targets.to_sequences(boxes, classes, classes, vocabulary, length).targets_BL, data["resp_seq"]
    )
    drawn = FIRST_CLASS + data["draw0_rand_cls_offset_rand_n_fake_cls"]
    coin = data["draw1_u_rand_n_fake_rand_n_fake_cls"]
    with patch.object(torch, "randint_like", return_value=drawn), patch.object(torch, "rand", return_value=coin):
        inputs = targets.corrupted_classes(classes, vocabulary)
    result.same("corruption", inputs, data["resp_seq_input_rand_n_fake_cls"][:, 4::5])
    for key, c in about.items():
        if not re.fullmatch(r"pb\d+", key):
            continue
        vocabulary = Vocabulary(c["quantization_bins"], c["coord_vocab_shift"], 10_000)
        ours = targets.to_sequences(boxes, classes, classes, vocabulary, c["max_seq_len"])
        result.same("sequences", ours.inputs_BL, data[f"{key}_input_seq"])
        result.same("sequences", ours.targets_BL, data[f"{key}_target_seq"])
        # ours are the published 0.1 and 1; a case with others must have them at the same positions
        weights = ours.weights_BL.masked_fill(ours.targets_BL == PAD, c["eos_token_weight"])
        weights = weights.masked_fill(ours.targets_BL == NOISE, c["noise_bbox_weight"])
        result.compare("weights", weights, data[f"{key}_token_weights"])
        if (c["eos_token_weight"], c["noise_bbox_weight"]) == (targets.PAD_WEIGHT, 1.0):
            result.compare("weights", ours.weights_BL, data[f"{key}_token_weights"])


def check_predictions(result: Result, data: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Boxes, classes and scores of given sequences and logits."""
    first, size = about["coord_vocab_shift"], data["dec_logits"].shape[-1]
    config = Pix2SeqConfig(
        "patches",
        64,
        16,
        encoder_layers=1,
        decoder_layers=1,
        bins=about["bins"],
        first_coordinate=first,
        vocabulary=size,
    )
    detector = Pix2Seq(config, tuple(map(str, range(1, first - FIRST_CLASS))), pretrained=False)
    for kind in ("dec", "dec_edge"):
        logits = data[f"{kind}_logits"]
        length = logits.shape[1] // 5 * 5
        tokens = data.get(f"{kind}_pred_seq", torch.zeros(logits.shape[:2], dtype=torch.long))
        log_probs = logits[:, 4:length:5].log_softmax(-1)[..., FIRST_CLASS + 1 : first]
        generated = Generated(tokens[:, :length], torch.zeros(tokens.shape), log_probs)
        predictions = detector.to_predictions(generated)
        known = data[f"{kind}_class"] > 0  # label 0 is no class of ours
        result.same("classes", predictions.labels_BD[known] + 1, data[f"{kind}_class"][known])
        result.compare("scores", predictions.scores_BD[known], data[f"{kind}_score"][known])
        if f"{kind}_bbox" in data:
            boxes = detector.vocabulary().boxes(generated.tokens_BL.unflatten(1, (-1, 5))[..., :4])
            result.compare("boxes", boxes[..., [1, 0, 3, 2]], data[f"{kind}_bbox"])


def check_images(name: str, golden: Arrays, about: Mapping[str, Any]) -> Result:
    """Sizes, evaluation images in floats and in our bytes, training images with the recorded draws."""
    result = Result(name)
    for h, w, th, tw, eval_h, eval_w, scale, jitter_h, jitter_w in about["size_table"]["rows"]:
        result.same("sizes", fitted_size(h, w, (th, tw)), (eval_h, eval_w))
        jittered = official_size(torch.tensor([[h, w]]), torch.tensor([th, tw]), torch.tensor([scale]))
        result.same("sizes", jittered[0], (jitter_h, jitter_w))
    for case in about["eval"]:
        check_eval_image(result, golden, case)
    if "u8_to_float_table" in golden:
        result.compare("bytes to floats", pixels(torch.arange(256, dtype=torch.uint8)), golden["u8_to_float_table"])
    for case in about["train_forced_draws"]:
        draws = [case[key] for key in ("draw_scale", "draw_crop_fraction", "draw_flip_coin")]
        key = f"train{case['i']}"
        labels, boxes = golden[f"{key}_after_filter_label"], golden[f"{key}_bbox_padded"]
        check_train_image(result, golden, case, draws, golden[f"{key}_image_padded"], labels, boxes)
    for case in about["train_replay"]:
        key = f"replay{case['i']}"
        draws = [float(golden[f"{key}_draw{n:02}_uniform"]) for n in range(3)]
        labels, boxes = golden[f"{key}_label"], golden[f"{key}_bbox"]
        real, order = labels > 0, golden[f"{key}_draw03_shuffle"]
        result.same("objects", len(order), real.sum())
        check_train_image(result, golden, case, draws, golden[f"{key}_image"], labels[real], boxes[real], order)
    return result


def check_eval_image(result: Result, golden: Arrays, case: Mapping[str, Any]) -> None:
    """Size and padding; the pixels in floats, by torch's resizing, and in bytes, as our data path resizes them."""
    (height, width), (side_y, side_x), tag = case["in_size"], case["target"], case["tag"]
    new = fitted_size(height, width, (side_y, side_x))
    result.same("sizes", new, case["unpadded"])
    image_HW3 = smooth_image(height, width)
    image_13HW = torch.from_numpy(image_HW3).float().permute(2, 0, 1)[None]
    in_floats = F.interpolate(image_13HW, new, mode="bilinear", antialias=True)
    rgb = Image.fromarray((image_HW3 * 255).round().astype(np.uint8))
    in_bytes = torch.from_numpy(fit(rgb, max(new))[0]).permute(2, 0, 1)[None]
    stored = f"{tag}_image" if f"{tag}_image" in golden else next(k for k in golden if k.startswith(f"{tag}_image_sub"))
    start, step = (3, int(stored.rpartition("sub")[2])) if "sub" in stored else (0, 1)
    for stage, resized, limit in (("eval image", in_floats, None), ("eval image in bytes", in_bytes, GREY_LEVEL)):
        part = pixels(resized)[..., : new[0], : new[1]]
        padded = F.pad(part, (0, side_x - new[1], 0, side_y - new[0]), value=PADDING)
        result.compare(stage, padded[0].permute(1, 2, 0)[start::step, start::step], golden[stored], limit=limit)
    scale_4 = np.tile(np.array(new) / case["target"], 2)
    boxes = golden["eval_input_bbox"] * scale_4
    result.compare("eval boxes", boxes, golden[f"{tag}_bbox"][: len(boxes)])


def check_train_image(
    result: Result, golden: Arrays, case: Mapping[str, Any], draws: list[float], image: np.ndarray,
    labels: np.ndarray, boxes: np.ndarray, order: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Scaled, cropped and flipped as recorded; crowds are left out before, as our readers do."""
    crowd = next(value for key, value in golden.items() if key.endswith("_is_crowd"))[: len(golden["eval_input_bbox"])]
    known = next(value for key, value in golden.items() if re.fullmatch(r"eval_\d.*_label", key))[: len(crowd)][~crowd]
    boxes_1N4 = torch.from_numpy(golden["eval_input_bbox"][~crowd][:, [1, 0, 3, 2]])[None]
    images = torch.from_numpy(smooth_image(*case["in_size"])).float().permute(2, 0, 1)[None]
    sizes = torch.tensor([case["in_size"]])
    ids = torch.arange(boxes_1N4.shape[1])[None]
    batch = Batch(images, sizes, sizes, boxes_1N4, ids, ids >= 0, torch.zeros(1, dtype=torch.long))
    scale, offset, coin = draws
    view = official_view(
        batch, tuple(case["target"]), torch.tensor([scale]), torch.tensor([offset]), torch.tensor([coin > 0.5])
    )
    mask = image_mask(view.images_BCHW, view.sizes_B2)[:, None]
    result.compare("train image", view.images_BCHW.where(mask, PADDING)[0].permute(1, 2, 0), image)
    if "unpadded" in case:
        result.same("sizes", view.sizes_B2[0], case["unpadded"])
    left = view.valid_BN[0].numpy()
    order = np.arange(left.sum()) if order is None else order
    result.same("objects", known[view.labels_BN[0].numpy()[left]][order], labels)
    result.compare("train boxes", view.boxes_BN4[0][left][order][:, [1, 0, 3, 2]], boxes)


def check_noise(name: str, about: Mapping[str, Any]) -> Result:
    """Distributions of noise boxes: the share of 100,000 draws that would have to move to make two histograms equal."""
    torch.manual_seed(0)
    result, count = Result(name), 100_000
    none, sides = torch.zeros(1, count, 4), {"ymin": 1, "xmin": 0, "ymax": 3, "xmax": 2}
    box = torch.tensor(about["shift_bbox_untruncated"]["box"])[[1, 0, 3, 2]]
    for key, drawn in (
        ("random_bbox_clipped", targets.random_boxes(none)),
        ("shift_bbox_clipped", targets.moved_boxes(box.expand(1, count, 4))),
    ):
        for side, column in sides.items():
            result.compare("boxes", share(drawn[..., column], about[key][side]), 0, limit=0.02)
    size_4 = (box[2:] - box[:2]).repeat(2)
    rates = (targets.jittered_boxes(box.expand(1, count, 4)) - box) / size_4
    for side, column in sides.items():
        result.compare("jitter", share(rates[..., column], about["jitter_bbox_rate"][side]), 0, limit=0.02)
    check_mixture(result, about["augment_bbox"], sides)
    law = about["rand_n_fake_cls"]
    classes = targets.corrupted_classes(torch.full((1, count), FIRST_CLASS + 1), Vocabulary())
    result.compare("corruption", (classes == NOISE).float().mean(), law["fraction_fake_30"], limit=0.01)
    tenths = {"hist": law["hist_10_bins_100_1000"], "hist_lo": 100, "hist_hi": 1000}
    result.compare("corruption", share(classes[classes != NOISE], tenths), 0, limit=0.02)
    return result


def check_mixture(result: Result, law: Mapping[str, Any], sides: Mapping[str, int]) -> None:
    """All noise boxes of an image, and how many of them are jittered real boxes."""
    real, images = torch.tensor(law["gt"])[:, [1, 0, 3, 2]], 2000
    rows = len(real) + law["n_noise"]
    boxes = torch.zeros(images, rows, 4)
    boxes[:, : len(real)] = real
    boxes = targets.with_noise(boxes, (torch.arange(rows) < len(real)).expand(images, -1))
    result.same("real boxes first", boxes[:, : len(real)], real.expand(images, -1, -1))
    for side, column in sides.items():
        result.compare("mixture", share(boxes[:, len(real) :, column], law["all_noise_boxes"][side]), 0, limit=0.03)
    tiny = torch.tensor([0.45, 0.45, 0.451, 0.451])  # nothing else comes near it by chance
    repeats = len(law["dup_size_n_noise_10_counts"]) - 1
    boxes = torch.zeros(20_000, repeats + 1, 4)
    boxes[:, 0] = tiny
    boxes = targets.with_noise(boxes, (torch.arange(repeats + 1) < 1).expand(len(boxes), -1))
    near = ((boxes[:, 1:] - tiny).abs().amax(-1) < 0.00011).sum(1)
    counts = {"hist": law["dup_size_n_noise_10_counts"], "hist_lo": -0.5, "hist_hi": repeats + 0.5}
    result.compare("repeats", share(near, counts), 0, limit=0.05)


def share(values: Tensor, law: Mapping[str, Any]) -> float:
    """The difference of two histograms: the share of draws that would have to move."""
    counts = torch.histc(values.flatten().float(), len(law["hist"]), law["hist_lo"], law["hist_hi"])
    official = torch.tensor(law["hist"]).float()
    return float((counts / counts.sum() - official / official.sum()).abs().sum() / 2)


def check_optimizer(name: str, about: Mapping[str, Any]) -> Result:
    """Learning rates relative to their peak, and six updates of two weights by each rule."""
    result = Result(name)
    for law in about["lr_schedules"]:
        kind = (law["schedule"], law["end_lr_factor"], law["tail"])
        if kind != ("linear", FLOOR, 0):
            result.notes.append(f"schedule {law['schedule']}, end {law['end_lr_factor']}, tail {law['tail']}")
            continue
        factor = {"none": 1.0, "linear": law["batch"] / 256, "sqrt": math.sqrt(law["batch"])}[law["scaling"]]
        settings = Optim(schedule="linear", warmup=law["warmup"] / law["total"], hold=0.0)
        for step, rate in zip(law["steps"], law["lr"], strict=True):
            ours = rate_factor(min(step, law["total"]), law["total"], settings)
            result.compare("rates", ours, rate / (law["base"] * factor))
    for trace, rule in (("adamw_trace", "keras"), ("adamw_legacy_trace", "keras-kernels")):
        check_trace(result, about["trace_setup"], about[trace], rule)
    return result


def check_trace(result: Result, setup: Mapping[str, Any], trace: list[Mapping[str, Any]], rule: Any) -> None:
    """Six updates with recorded gradients."""
    names = ("kernel", "bias")
    weights = nn.ParameterDict({n: nn.Parameter(torch.tensor(setup[f"{n}0"])) for n in names})
    weights.backbone_parameters = list  # type: ignore[assignment]
    settings = Optim(
        lr=setup["lr"], backbone_factor=1.0, weight_decay=setup["weight_decay"], rule=rule, beta2=setup["beta2"]
    )
    optimizer = make_optimizer(weights, settings)  # type: ignore[arg-type]
    for gradients, weights_after in zip(setup["grads"], trace, strict=True):
        for n, gradient in zip(names, gradients, strict=True):
            weights[n].grad = torch.tensor(gradient)
        optimizer.step()
        for n in names:
            result.compare(f"updates by {rule}", weights[n].detach(), weights_after[n])
