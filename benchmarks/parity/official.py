"""google-research/pix2seq: networks, training steps, and (in `official_data`) tokens, images and schedules."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from official_data import check_data
from official_networks import build, stored_images, with_weights
from official_train import check_training
from torch import Tensor

from boxwright.interop.pix2seq_official import official_to_ours
from boxwright.models.pix2seq import Pix2Seq
from boxwright.models.sequence.generate import generate
from boxwright.models.sequence.sampling import Sampling
from boxwright.models.sequence.vocabulary import PROMPT
from boxwright.types import Batch, Predictions
from golden import Arrays, Result, attempt, read_arrays


def check(folder: Path) -> Iterator[Result]:
    """All cases of a folder: its networks with all that is stored for each, then everything else."""
    for file in sorted(folder.glob("manifest_*.json")):
        name, manifest = file.stem.removeprefix("manifest_"), json.loads(file.read_text())
        yield attempt(f"{name} tensors", check_shapes, name, manifest)
        if (folder / f"model_{name}.npz").exists():
            yield attempt(name, check_network, name, manifest, read_arrays(folder / f"model_{name}.npz"))
        if (folder / f"train_{name}.json").exists():
            yield from check_training(name, manifest, folder)
    yield from check_data(folder)


def check_shapes(name: str, manifest: Mapping[str, Any]) -> Result:
    """Names and shapes of all tensors, and the number of parameters, without allocating any."""
    with torch.device("meta"):
        network = build(manifest)
    result = Result(f"{name} tensors")
    blank = {v["name"]: np.broadcast_to(np.float32(0), v["shape"]) for v in manifest["variables"]}
    theirs = {key: tuple(value.shape) for key, value in official_to_ours(blank).items()}
    ours = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    result.same("names and shapes", sorted(theirs.items()) == sorted(ours.items()), True)
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    result.same("parameters", parameters, manifest["num_trainable_params"])
    return result


@torch.no_grad()
def check_network(name: str, manifest: Mapping[str, Any], golden: Arrays) -> Result:
    """A forward pass with given sequences, its loss, and generated sequences."""
    network, result = with_weights(manifest), Result(name)
    images, sizes = stored_images(manifest, golden)
    layers = record_layers(network)
    memory = network(images, sizes)
    encoder_out = network.encoder(network.features(images, sizes))
    compare_thinned(result, golden, "encoder_out", encoder_out)
    compare_thinned(result, golden, "proj_ln_out", network.bridge.norm(network.bridge.projection(encoder_out)))
    compare_thinned(result, golden, "encoded", memory)
    logits = network.decoder(torch.from_numpy(golden["input_seq"]), memory)
    compare_layers(result, golden, layers)
    result.compare("logits", logits, golden["logits"])
    compare_loss(result, golden, logits)
    check_generation(result, network, memory, tuple(images.shape[-2:]), golden)
    for prompt in (key for key in golden if re.fullmatch(r"prompt\d+", key) and f"{key}_greedy_logits" in golden):
        check_prompt(result, network, memory, golden, prompt)
    return result


def check_generation(result: Result, network: Pix2Seq, memory: Tensor, canvas: tuple[int, int], golden: Arrays) -> None:
    """The greedy sequence, the logits of each step, and the predictions in it."""
    tokens = torch.from_numpy(golden["greedy_tokens"])
    generated = network.generate(memory, objects=tokens.shape[1] // 5)
    result.same("greedy tokens", generated.tokens_BL, tokens)
    start = torch.full_like(tokens[:, :1], PROMPT)
    if "greedy_logits" in golden:
        ours = step_logits(network, memory, torch.cat([start, tokens], 1), 1)
        result.compare("greedy logits", ours, golden["greedy_logits"])
    predictions = network.to_predictions(generated)
    boxes = network.vocabulary().boxes(generated.tokens_BL.unflatten(1, (-1, 5))[..., :4])
    known = golden["det_class"] > 0
    if not known.all():
        result.notes.append("classes and scores where the best class is label 0, which no object ever has")
    result.same("classes", (predictions.labels_BD.numpy() + 1)[known], golden["det_class"][known])
    result.compare("scores", predictions.scores_BD.numpy()[known], golden["det_score"][known])
    result.compare("boxes", boxes[..., [1, 0, 3, 2]], golden["det_bbox_yxyx_norm"])
    result.compare("boxes", *in_pixels(boxes, canvas, golden))


def in_pixels(boxes_BD4: Tensor, canvas: tuple[int, int], golden: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the stored boxes of the original images, in shares of the images' sides, both clipped to them."""
    sizes, originals = (torch.from_numpy(golden[key]).long() for key in ("unpadded_image_size", "orig_image_size"))
    count, none = len(boxes_BD4), torch.zeros(boxes_BD4.shape[:2])
    empty = torch.zeros(count, 0)
    batch = Batch(torch.empty(count, 0, *canvas), sizes, originals, empty, empty, empty, empty)
    converted = Predictions(boxes_BD4, none + 1, none.long()).to_detections(batch, ("any",))
    sides = originals.repeat(1, 2)[:, None].numpy()
    ours = np.stack([detections.boxes_N4[:, [1, 0, 3, 2]] for detections in converted])
    return ours / sides, np.minimum(golden["det_bbox_yxyx_orig_pixels"], sides) / sides


def check_prompt(result: Result, network: Pix2Seq, memory: Tensor, golden: Arrays, prompt: str) -> None:
    """Sequences whose first tokens are given."""
    given, tokens = (torch.from_numpy(golden[key]) for key in (prompt, f"{prompt}_greedy_tokens"))
    ours = step_logits(network, memory, torch.cat([given, tokens], 1), given.shape[1])
    result.compare("prompted logits", ours, golden[f"{prompt}_greedy_logits"])
    result.same("prompted tokens", ours.argmax(-1), tokens)
    if given.shape[1] % 5 == 1:
        constraints = network.vocabulary().token_constraints(len(network.names), free=True, device=memory.device)
        objects = (given.shape[1] - 1 + tokens.shape[1]) // 5
        generated = generate(network.decoder, memory, constraints, objects, Sampling(), given[:, 1:])
        result.same("prompted tokens", generated.tokens_BL[:, given.shape[1] - 1 :], tokens)


def step_logits(network: Pix2Seq, memory: Tensor, tokens_BL: Tensor, prompt: int) -> Tensor:
    """Logits (B, L - prompt, V) of each token after the prompt, which is one step; then token by token."""
    length = tokens_BL.shape[1]
    cache = network.decoder.start(memory, length)
    spans = [(0, prompt)] + [(position, position + 1) for position in range(prompt, length - 1)]
    return torch.stack([network.decoder.step(tokens_BL[:, a:b], torch.arange(a, b), cache) for a, b in spans], 1)


def record_layers(network: Pix2Seq) -> dict[str, Tensor]:
    """A dict that the next forward pass fills with the layers' outputs, by the names under which they are stored."""
    outputs: dict[str, Tensor] = {}

    def keep(stage: str, module: Any) -> None:
        module.register_forward_hook(lambda _, __, output: outputs.update({stage: output}))

    for stage, module in enumerate(getattr(network.backbone, "stages", [])):
        keep(f"resnet_block_group{stage + 1}", module)
    for number, layer in enumerate(network.encoder.layers):
        keep(f"enc_layer_out_{number + 1}", layer)
    for number, layer in enumerate(network.decoder.layers):
        keep(f"dec_layer_out_{number}", layer)
    return outputs


def compare_layers(result: Result, golden: Arrays, outputs: Mapping[str, Tensor]) -> None:
    """The outputs of the layers that are stored."""
    for stage, ours in outputs.items():
        if stage in golden:
            result.compare("layers", ours.permute(0, 2, 3, 1) if ours.ndim == 4 else ours, golden[stage])


def compare_thinned(result: Result, golden: Arrays, stage: str, ours_BME: Tensor) -> None:
    """A stage stored whole, or every n-th cell of it with mean and standard deviation of all cells."""
    for key, value in golden.items():
        match = re.fullmatch(rf"{stage}(?:_every(\d+))?", key)
        if match:
            result.compare(stage, ours_BME[:, :: int(match[1] or 1)], value)
    if f"{stage}_token_mean" in golden:
        result.compare(stage, ours_BME.mean(-1), golden[f"{stage}_token_mean"])
        result.compare(stage, ours_BME.std(-1, correction=0), golden[f"{stage}_token_std"])


def compare_loss(result: Result, golden: Arrays, logits_BLV: Tensor, prefix: str = "") -> None:
    """Each token's cross-entropy, and its mean by weights."""
    targets, weights = torch.from_numpy(golden["target_seq"]), torch.from_numpy(golden["token_weights"])
    each = F.cross_entropy(logits_BLV.flatten(0, 1), targets.flatten(), reduction="none").view_as(weights)
    result.compare("loss", each, golden[f"{prefix}loss_per_token"])
    result.compare("loss", (each * weights).sum() / (weights.sum() + 1e-9), golden[f"{prefix}loss"])
