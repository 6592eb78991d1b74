"""The PyTorch replications: every stage of the network, its losses, what it writes, and its language."""

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
from golden import PADDED, SQUARE, Arrays, Result, canvas, is_sharp, read_arrays, weights

ORIGINALS = [(480, 640), (500, 375)]  # heights and widths of the files that they stand for
CANVAS = 512  # of images that are only sizes


def check(folder: Path) -> Iterator[Result]:
    """All cases of a folder, and its language."""
    manifest, summary, tokens = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("manifest", "summary", "tokenisation")
    )
    for file in sorted(folder.glob("golden_*.npz")):
        case = file.stem.removeprefix("golden_")
        golden = read_arrays(file)
        network = build(manifest, golden, summary.get(case, {}))
        yield check_network(network, f"{folder.name} {case}", golden, summary.get(case, {}), tokens)
    yield check_language(build(manifest, {}, {}), f"{folder.name} language", tokens)


def build(manifest: Mapping[str, Any], golden: Arrays, summary: Mapping[str, Any]) -> Replication:
    """The network with the weights of the formula, imported as a file would be, with all class numbers as classes."""
    values = weights(manifest, golden, summary)
    found = convert({name: torch.from_numpy(value) for name, value in values.items()}, manifest["config"]["nheads"])
    assert found is not None, "no tensors of a replication"
    network = found.detector(found.config, tuple(map(str, found.ids)))
    network.load_state_dict(found.state)
    assert isinstance(network, Replication)
    return network.eval()


def images(golden: Arrays) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] on a common canvas, and their sizes."""
    sizes = SQUARE if len(golden["feat"]) == 1 else PADDED
    return torch.from_numpy(canvas(sizes, is_sharp(golden))).permute(0, 3, 1, 2).float(), torch.tensor(sizes)


@torch.no_grad()
def check_network(
    network: Replication, case: str, golden: Arrays, summary: Mapping[str, Any], tokens: Mapping[str, Any]
) -> Result:
    """The stages one after the other, each from ours, then losses, sentences and boxes."""
    result = Result(case)
    canvas_BCHW, sizes_B2 = images(golden)
    raw, seen = watch(network, canvas_BCHW, sizes_B2)
    result.compare("feat", seen["feat"][:, ::4], golden["feat"], 3e-4)
    thin = 4 if network.config.has_positions else 2
    result.compare("input_proj", seen["input_proj"][:, ::thin], golden["input_proj"])
    height, width = golden["feat"].shape[-2:]
    positions_BEHW = (raw.memory.keys_BME - raw.memory.values_BME).mT.unflatten(2, (height, width))
    count = len(golden["pos_embed"])
    result.compare("pos_embed", positions_BEHW[:count, ::thin], golden["pos_embed"])
    result.compare("encoder", raw.memory.values_BME, golden["encoder"])
    check_reading(network, raw.memory, result, golden, summary, tokens)
    check_writing(network, raw, result, golden)
    return result


def watch(network: Replication, canvas_BCHW: Tensor, sizes_B2: Tensor) -> tuple[ReplicationOutputs, dict[str, Tensor]]:
    """What the network makes of the images, and what its first parts say."""
    seen: dict[str, Tensor] = {}
    parts = {"feat": network.backbone.layer4, "input_proj": network.projection}
    hooks = [
        part.register_forward_hook(lambda _, __, output, stage=stage: seen.update({stage: output}))
        for stage, part in parts.items()
    ]
    raw = network(canvas_BCHW, sizes_B2)
    for hook in hooks:
        hook.remove()
    return raw, seen


def check_reading(
    network: Replication,
    memory: EncoderMemory,
    result: Result,
    golden: Arrays,
    summary: Mapping[str, Any],
    tokens: Mapping[str, Any],
) -> None:
    """Given sentences: what the layers make of them, their scores and losses."""
    if network.config.has_positions:
        begun_BL, last = torch.from_numpy(golden["tf_input_tokens"]), [0, -1]
    else:
        begun_BL, last = begun(network, golden["tf_tokens"]), [-1]
    states = network.decoder.states(begun_BL, memory)
    ours = torch.stack([states[layer] for layer in last])
    result.compare("decoder", ours if network.config.has_positions else ours[0], golden["decoder"])
    scores_NBLV = torch.stack([network.decoder.head(x_BLE) for x_BLE in states])
    result.compare("tf_logits", scores_NBLV[-1, ..., ::2], golden["tf_logits"])
    if "tf_logits_layers_0_to_4" in golden:
        result.compare("tf_logits", scores_NBLV[:-1, :, ::4, ::8], golden["tf_logits_layers_0_to_4"])
        layers = scores_NBLV if network.config.variant == "unofficial" else scores_NBLV[-1:]
        targets_BL = torch.from_numpy(golden["tf_target_tokens"])
        targets_BL = targets_BL.masked_fill(targets_BL == network.config.vocabulary - 1, -100)
        result.compare("loss", network.cross_entropy(layers, targets_BL), summary["loss"])
    if "tf500_logits_slice" in golden:
        given = next(value for key, value in tokens.items() if key.startswith("input_seq_seed0"))
        targets_BL = torch.tensor(tokens["target_seq"])
        scores_BLV = network.decoder(begun(network, given)[:, : targets_BL.shape[1]], memory)
        result.compare("tf500_logits", scores_BLV[:, ::20, ::8], golden["tf500_logits_slice"])
        result.compare("loss", network.cross_entropy(scores_BLV[None], targets_BL), summary["loss_seq"])


def begun(network: Replication, tokens: Any) -> Tensor:
    """Sentences behind the start."""
    return torch.nn.functional.pad(torch.as_tensor(np.asarray(tokens)), (1, 0), value=network.config.start)


def check_writing(network: Replication, raw: ReplicationOutputs, result: Result, golden: Arrays) -> None:
    """Greedy sentences, and what is read off them."""
    said = network.generate(raw)
    length = said.tokens_BL.shape[1]
    if network.config.has_positions:
        result.same("greedy tokens", said.tokens_BL, golden["greedy_seq"][:, 1 : length + 1])
        result.compare("greedy_prob", said.log_probs_BL.exp(), golden["greedy_values"][:, :length])
        return
    result.same("greedy tokens", said.tokens_BL, golden["greedy_tokens"])
    result.compare("greedy_prob", said.log_probs_BL.exp(), golden["greedy_token_prob"])
    first_BL = begun(network, said.tokens_BL[:, :5])
    result.compare("greedy_logits", network.decoder(first_BL, raw.memory)[..., ::2], golden["greedy_logits_first6"])
    if "post_0_labels" in golden:
        check_found(network.to_predictions(said, raw), network.vocabulary(raw).valid_ratios, result, golden)


def check_found(found: Predictions, ratios_B14: Tensor, result: Result, golden: Arrays) -> None:
    """Boxes in pixels of the original images, scores and classes; a reversed box of theirs is an empty one of ours."""
    for image, original in enumerate(ORIGINALS):
        scale_4 = torch.tensor(original[::-1] * 2) / ratios_B14[image, 0]
        if f"post_{image}_boxes" in golden:
            boxes, scores = golden[f"post_{image}_boxes"], golden[f"post_{image}_scores"]
        else:
            boxes, scores = np.split(golden[f"post_{image}_boxes_scores"], [4], 1)
        boxes = np.concatenate([boxes[:, :2], np.maximum(boxes[:, :2], boxes[:, 2:])], 1)
        result.compare("post_boxes", found.boxes_BD4[image] * scale_4, boxes, 1e-3)
        result.compare("post_scores", found.scores_BD[image], scores.reshape(-1))
        result.same("post_labels", found.labels_BD[image], golden[f"post_{image}_labels"])


def check_language(network: Replication, case: str, tokens: Mapping[str, Any]) -> Result:
    """Boxes to words and back, and what should be said of them."""
    result, said = Result(case), []
    nothing = EncoderMemory(*(torch.zeros(()) for _ in EncoderMemory._fields))
    for pair in tokens["pairs"]:
        height, width = pair.get("size_hw") or pair.get("img_shape") or pair["orig_size_hw"]
        raw = ReplicationOutputs(nothing, torch.tensor([[height, width]]), (CANVAS, CANVAS))
        sides_4 = torch.tensor([width, height] * 2)
        if "boxes_cxcywh_normalised" in pair:
            boxes_N4 = box_convert(torch.tensor(pair["boxes_cxcywh_normalised"]), "cxcywh", "xyxy") * sides_4
        else:
            boxes_N4 = torch.tensor(pair["boxes_xyxy_input_pixels"])
        vocabulary = network.vocabulary(raw)
        words_1N5 = vocabulary.object_tokens(boxes_N4[None] / CANVAS, torch.tensor([pair["labels"]]))
        result.same("words", words_1N5[0], pair["tokens"])
        decoded = "decoded_xyxy_input_pixels" if "decoded_xyxy_input_pixels" in pair else "decoded_xyxy_original_pixels"
        result.compare("boxes", vocabulary.boxes(words_1N5[..., :4])[0] * CANVAS, pair[decoded], 1e-3)
        said.append(network.target_tokens(extended(words_1N5), torch.arange(100)[None] < words_1N5.shape[1]))
    if "target_seq" in tokens:
        result.same("targets", torch.cat(said), tokens["target_seq"])
    return result


def extended(words_1N5: Tensor) -> Tensor:
    """The words of 100 objects, of which the last ones mean nothing."""
    return torch.nn.functional.pad(words_1N5, (0, 0, 0, 100 - words_1N5.shape[1]))
