"""The PyTorch replications: every stage of the network, its losses, what it generates, and its vocabulary."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from boxwright.interop.replications import convert
from boxwright.models.replication import EncoderMemory, Replication, ReplicationOutputs
from boxwright.types import Predictions
from golden import PADDED, SQUARE, Arrays, Result, canvas, is_sharp, read_arrays, stage_noise, weights

ORIGINALS = [(480, 640), (500, 375)]  # heights and widths of the files that the images stand for
CANVAS = 512  # in pixels, for images of which only the size matters


def check(folder: Path) -> Iterator[Result]:
    """All cases of a folder, and its vocabulary."""
    manifest, summary, tokens = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("manifest", "summary", "tokenisation")
    )
    for file in sorted(folder.glob("golden_*.npz")):
        case = file.stem.removeprefix("golden_")
        golden = read_arrays(file)
        network = build(manifest, golden, summary.get(case, {}))
        noise = stage_noise(summary.get("fp32_noise", {}).get(case, {}))
        yield check_network(network, f"{folder.name} {case}", golden, summary.get(case, {}), tokens, noise)
    yield check_vocabulary(build(manifest, {}, {}), f"{folder.name} vocabulary", tokens)


def build(manifest: Mapping[str, Any], golden: Arrays, summary: Mapping[str, Any]) -> Replication:
    """The network with the weights of the formula, imported as a file would be, with all class numbers as classes."""
    values = weights(manifest, golden, summary)
    foreign = convert({name: torch.from_numpy(value) for name, value in values.items()}, manifest["config"]["nheads"])
    assert foreign is not None, "no tensors of a replication"
    network = foreign.detector(foreign.config, tuple(map(str, foreign.ids)))
    network.load_state_dict(foreign.state)
    assert isinstance(network, Replication)
    return network.eval()


def images(golden: Arrays) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] on a common canvas, and their sizes."""
    sizes = SQUARE if len(golden["feat"]) == 1 else PADDED
    return torch.from_numpy(canvas(sizes, is_sharp(golden))).permute(0, 3, 1, 2).float(), torch.tensor(sizes)


@torch.no_grad()
def check_network(
    network: Replication,
    case: str,
    golden: Arrays,
    summary: Mapping[str, Any],
    tokens: Mapping[str, Any],
    noise: Mapping[str, float],
) -> Result:
    """The stages one after the other, each computed from ours before it, then losses, sequences and boxes."""
    result = Result(case)
    canvas_BCHW, sizes_B2 = images(golden)
    outputs, stages = record_stages(network, canvas_BCHW, sizes_B2)
    memory = outputs.memory
    thin = 4 if network.config.has_positions else 2
    height, width = golden["feat"].shape[-2:]
    positions_BEHW = (memory.keys_BME - memory.values_BME).mT.unflatten(2, (height, width))
    stages["feat"] = stages["feat"][:, ::4]
    stages["input_proj"] = stages["input_proj"][:, ::thin]
    stages["pos_embed"] = positions_BEHW[: len(golden["pos_embed"]), ::thin]
    stages["encoder"] = memory.values_BME
    for stage, ours in stages.items():
        result.compare(stage, ours, golden[stage], noise.get(stage, 0.0))
    check_decoder(network, memory, result, golden, summary, tokens)
    check_generation(network, outputs, result, golden)
    return result


def record_stages(
    network: Replication, canvas_BCHW: Tensor, sizes_B2: Tensor
) -> tuple[ReplicationOutputs, dict[str, Tensor]]:
    """The outputs of the network for these images, and of its first modules under the names of the stages."""
    stages: dict[str, Tensor] = {}
    modules = {"feat": network.backbone.layer4, "input_proj": network.projection}
    hooks = [
        module.register_forward_hook(lambda _, __, output, stage=stage: stages.update({stage: output}))
        for stage, module in modules.items()
    ]
    outputs = network(canvas_BCHW, sizes_B2)
    for hook in hooks:
        hook.remove()
    return outputs, stages


def check_decoder(
    network: Replication,
    memory: EncoderMemory,
    result: Result,
    golden: Arrays,
    summary: Mapping[str, Any],
    tokens: Mapping[str, Any],
) -> None:
    """The layers' states for given sequences, their logits and losses."""
    if network.config.has_positions:
        tokens_BL, last = torch.from_numpy(golden["tf_input_tokens"]), [0, -1]
    else:
        tokens_BL, last = with_start(network, golden["tf_tokens"]), [-1]
    states = network.decoder.states(tokens_BL, memory)
    ours = torch.stack([states[layer] for layer in last])
    result.compare("decoder", ours if network.config.has_positions else ours[0], golden["decoder"])
    logits_NBLV = torch.stack([network.decoder.head(x_BLE) for x_BLE in states])
    result.compare("tf_logits", logits_NBLV[-1, ..., ::2], golden["tf_logits"])
    if "tf_logits_layers_0_to_4" in golden:
        result.compare("tf_logits", logits_NBLV[:-1, :, ::4, ::8], golden["tf_logits_layers_0_to_4"])
        layers = logits_NBLV if network.config.variant == "unofficial" else logits_NBLV[-1:]
        targets_BL = torch.from_numpy(golden["tf_target_tokens"])
        targets_BL = targets_BL.masked_fill(targets_BL == network.config.vocabulary - 1, -100)
        result.compare("loss", network.cross_entropy(layers, targets_BL), summary["loss"])
    if "tf500_logits_slice" in golden:
        given = next(value for key, value in tokens.items() if key.startswith("input_seq_seed0"))
        targets_BL = torch.tensor(tokens["target_seq"])
        logits_BLV = network.decoder(with_start(network, given)[:, : targets_BL.shape[1]], memory)
        result.compare("tf500_logits", logits_BLV[:, ::20, ::8], golden["tf500_logits_slice"])
        result.compare("loss", network.cross_entropy(logits_BLV[None], targets_BL), summary["loss_seq"])


def with_start(network: Replication, tokens: Any) -> Tensor:
    """Sequences after the start token."""
    return torch.nn.functional.pad(torch.as_tensor(np.asarray(tokens)), (1, 0), value=network.config.start)


def check_generation(network: Replication, outputs: ReplicationOutputs, result: Result, golden: Arrays) -> None:
    """Greedy sequences, and the predictions in them."""
    generated = network.generate(outputs)
    length = generated.tokens_BL.shape[1]
    if network.config.has_positions:
        result.same("greedy tokens", generated.tokens_BL, golden["greedy_seq"][:, 1 : length + 1])
        result.compare("greedy_prob", generated.log_probs_BL.exp(), golden["greedy_values"][:, :length])
        return
    result.same("greedy tokens", generated.tokens_BL, golden["greedy_tokens"])
    result.compare("greedy_prob", generated.log_probs_BL.exp(), golden["greedy_token_prob"])
    first_BL = with_start(network, generated.tokens_BL[:, :5])
    result.compare("greedy_logits", network.decoder(first_BL, outputs.memory)[..., ::2], golden["greedy_logits_first6"])
    if "post_0_labels" in golden:
        valid_ratios = network.vocabulary(outputs).valid_ratios
        check_predictions(network.to_predictions(generated, outputs), valid_ratios, result, golden)


def check_predictions(predictions: Predictions, valid_ratios_B14: Tensor, result: Result, golden: Arrays) -> None:
    """Boxes in shares of the image's sides, scores and classes; a reversed box of theirs is an empty one of ours."""
    for image, original in enumerate(ORIGINALS):
        sides_4 = np.array(original[::-1] * 2)
        if f"post_{image}_boxes" in golden:
            boxes, scores = golden[f"post_{image}_boxes"], golden[f"post_{image}_scores"]
        else:
            boxes, scores = np.split(golden[f"post_{image}_boxes_scores"], [4], 1)
        boxes = np.concatenate([boxes[:, :2], np.maximum(boxes[:, :2], boxes[:, 2:])], 1)
        result.compare("post_boxes", predictions.boxes_BD4[image] / valid_ratios_B14[image], boxes / sides_4)
        result.compare("post_scores", predictions.scores_BD[image], scores.reshape(-1))
        result.same("post_labels", predictions.labels_BD[image], golden[f"post_{image}_labels"])


def check_vocabulary(network: Replication, case: str, tokens: Mapping[str, Any]) -> Result:
    """Boxes to tokens and back, and target sequences."""
    result, targets = Result(case), []
    no_memory = EncoderMemory(*(torch.zeros(()) for _ in EncoderMemory._fields))
    for pair in tokens["pairs"]:
        height, width = pair.get("size_hw") or pair.get("img_shape") or pair["orig_size_hw"]
        outputs = ReplicationOutputs(no_memory, torch.tensor([[height, width]]), (CANVAS, CANVAS))
        sides_4 = torch.tensor([width, height] * 2)
        if "boxes_cxcywh_normalised" in pair:
            boxes_N4 = box_convert(torch.tensor(pair["boxes_cxcywh_normalised"]), "cxcywh", "xyxy") * sides_4
        else:
            boxes_N4 = torch.tensor(pair["boxes_xyxy_input_pixels"])
        vocabulary = network.vocabulary(outputs)
        tokens_1N5 = vocabulary.object_tokens(boxes_N4[None] / CANVAS, torch.tensor([pair["labels"]]))
        result.same("tokens", tokens_1N5[0], pair["tokens"])
        decoded = "decoded_xyxy_input_pixels" if "decoded_xyxy_input_pixels" in pair else "decoded_xyxy_original_pixels"
        boxes_M4 = vocabulary.boxes(tokens_1N5[..., :4])[0]
        result.compare("boxes", boxes_M4, np.array(pair[decoded]) / CANVAS)
        targets.append(network.target_tokens(extended(tokens_1N5), torch.arange(100)[None] < tokens_1N5.shape[1]))
    if "target_seq" in tokens:
        result.same("targets", torch.cat(targets), tokens["target_seq"])
    return result


def extended(tokens_1N5: Tensor) -> Tensor:
    """The tokens padded to those of 100 objects."""
    return torch.nn.functional.pad(tokens_1N5, (0, 0, 0, 100 - tokens_1N5.shape[1]))
