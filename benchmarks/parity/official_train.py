"""Training steps of google-research/pix2seq: loss, gradients, batch norms and six updates by each optimizer."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from official_networks import stored_images, with_weights
from torch import Tensor

from boxwright.config import Optim
from boxwright.interop.pix2seq_official import official_to_ours, our_name
from boxwright.models.pix2seq import Pix2Seq
from boxwright.training.optim import make_optimizer, rate_factor, set_rate
from golden import Arrays, Result, attempt, read_arrays

UPDATES = {"adamw": "keras", "adamw_legacy": "keras-kernels"}  # as stored, and as `Optim.rule` calls it
PRECISIONS = (torch.float32, torch.float64)
ROUNDING_ONLY = "_key_dense/bias"  # the true gradient is 0, what is stored is rounding


def check_training(name: str, manifest: Mapping[str, Any], folder: Path) -> Iterator[Result]:
    """One case for the first step, and one for the six steps of each optimizer."""
    stored = json.loads((folder / f"train_{name}.json").read_text())
    files = (folder / f"{kind}_{name}.npz" for kind in ("model", "train"))
    golden = {key: value for file in files if file.exists() for key, value in read_arrays(file).items()}
    golden |= noise_images(stored["image"], golden)
    runs = [key.removeprefix("steps_") for key in stored if key.startswith("steps_")]
    yield attempt(f"{name} training step", first_step, name, manifest, stored, golden)
    for kind in runs:
        yield attempt(f"{name} {kind}", six_steps, name, kind, manifest, stored, golden)


def noise_images(description: str, golden: Arrays) -> dict[str, np.ndarray]:
    """The random images of a case whose description is an expression with their seed and shape, else none."""
    match = re.match(r"numpy\.random\.default_rng\((\d+)\)\.random\(\(([\d,]+)\)\)", description)
    if match is None:
        return {}
    images = np.random.default_rng(int(match[1])).random([int(n) for n in match[2].split(",")]).astype(np.float32)
    assert np.array_equal(images[:, 0], golden["image_first_row"]), "these are not the stored images"
    return {"image": images}


def forward(network: Pix2Seq, manifest: Mapping[str, Any], golden: Arrays) -> tuple[Tensor, Tensor]:
    """Logits of the given sequences and their loss, in the precision of the network."""
    images, sizes = stored_images(manifest, golden)
    precision = next(network.parameters()).dtype
    logits = network.decoder(torch.from_numpy(golden["input_seq"]), network(images.to(precision), sizes)).to(precision)
    targets, weights = torch.from_numpy(golden["target_seq"]), torch.from_numpy(golden["token_weights"]).to(precision)
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return logits, (each.view_as(weights) * weights).sum() / (weights.sum() + 1e-9)


def first_step(name: str, manifest: Mapping[str, Any], stored: Mapping[str, Any], golden: Arrays) -> Result:
    """Loss, the gradient of each tensor relative to its norm, and statistics of batch norms after one pass.

    A batch norm over few, nearly equal values multiplies rounding: then the stored numbers are no nearer to the exact
    ones than ours are.
    """
    result, theirs = Result(f"{name} training step"), stored["train_mode"]
    ours, exact = (after_backward(with_weights(manifest).to(p), manifest, golden) for p in PRECISIONS)
    result.compare_training("loss", ours["loss"], theirs["loss"], exact["loss"])
    if "train_logits" in golden:
        result.compare_training("logits", ours["logits"], golden["train_logits"], exact["logits"])
        result.compare_training("loss", ours["loss"], golden["train_loss"], exact["loss"])
    for key, facts in theirs["grads"].items():
        one, twin, norm = ours[our_name(key)], exact[our_name(key)], facts["l2"]
        if key.endswith(ROUNDING_ONLY):
            continue
        error = abs(one.norm() - norm)
        if f"grad|{key}" in golden:
            [whole] = official_to_ours({key: golden[f"grad|{key}"]}).values()
            error = (one - whole).norm()
        result.compare_training("gradients", error / norm, 0.0, (error + (one - twin).norm()) / norm)
    for key, facts in theirs["bn_moving_after_one_forward"].items():
        one, twin = ours[our_name(key)], exact[our_name(key)]
        result.compare_training("batch norms", one[:4], facts["first4"], twin[:4])
        result.compare_training("batch norms", one.norm(), facts["l2"], twin.norm())
    result.notes.append("gradients of key biases, which are 0 but for rounding")
    return result


def after_backward(network: Pix2Seq, manifest: Mapping[str, Any], golden: Arrays) -> dict[str | None, Tensor]:
    """Loss and logits, gradients by parameter, and buffers."""
    logits, loss = forward(network.train(), manifest, golden)
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in network.named_parameters() if parameter.grad is not None}
    return dict(network.named_buffers()) | gradients | {"loss": loss.detach(), "logits": logits.detach()}


def six_steps(name: str, kind: str, manifest: Mapping[str, Any], stored: Mapping[str, Any], golden: Arrays) -> Result:
    """The loss before each update, how far each tensor moved, and the logits after the last update."""
    run, result = stored[f"steps_{kind}"], Result(f"{name} {kind}")
    of_losses, of_logits = stored_noise(run)
    steps = len(run["steps"]) if run["numerically_robust"] else 4
    ours, exact = (train(with_weights(manifest).to(p), kind, run, steps, manifest, stored, golden) for p in PRECISIONS)
    for step, theirs in enumerate(run["steps"][:steps]):
        result.compare_training("loss", ours[f"loss {step}"], theirs["loss"], exact[f"loss {step}"], of_losses)
        result.compare("rate", ours[f"rate {step}"] / run["base_lr"], theirs["lr"] / run["base_lr"])
    if steps < len(run["steps"]):
        result.notes.append(f"the last {len(run['steps']) - steps} steps: {run['note']}")
        return result
    for key, facts in run["final_vars"].items():
        if not key.endswith(ROUNDING_ONLY):
            for what, theirs in (("moved", facts["delta_l2"]), ("norm", facts["l2"])):
                stage = f"{what} {our_name(key)}"
                result.compare_training("weights", ours[stage], theirs, exact[stage])
    if f"eval_logits_after_6_steps_{kind}" in golden:
        logits = golden[f"eval_logits_after_6_steps_{kind}"]
        result.compare_training("logits", ours["logits"], logits, exact["logits"], of_logits)
    return result


def stored_noise(run: Mapping[str, Any]) -> tuple[float, float]:
    """Differences of losses and of logits between float32 runs of the original; 0 where none are stored."""
    numbers = re.findall(r"losses (\S+), eval logits .* (\S+)", run.get("seen_between_float32_runs", ""))
    return tuple(map(float, numbers[0])) if numbers else (0.0, 0.0)


def train(
    network: Pix2Seq, kind: str, run: Mapping[str, Any], steps: int, manifest: Mapping[str, Any],
    stored: Mapping[str, Any], golden: Arrays,
) -> dict[str, Any]:  # fmt: skip
    """Loss before and rate of each update; then how far each tensor moved, its norm, and the logits."""
    before = {key: value.clone() for key, value in network.train().state_dict().items()}
    update, numbers = updater(network, kind, run["base_lr"], stored["note"]), {}
    for step in range(steps):
        loss = forward(network, manifest, golden)[1]
        loss.backward()
        numbers |= {f"loss {step}": loss.detach(), f"rate {step}": update(step)}
        network.zero_grad()
    for key, value in network.state_dict().items():
        numbers |= {f"moved {key}": (value - before[key]).float().norm(), f"norm {key}": value.float().norm()}
    with torch.no_grad():
        return numbers | {"logits": forward(network.eval(), manifest, golden)[0]}


def updater(network: Pix2Seq, kind: str, peak: float, note: str) -> Callable[[int], float]:
    """A function that makes the update of a step (from 0) and returns its learning rate."""
    warmup, total = (int(re.search(rf"{word} (\d+)", note)[1]) for word in ("warmup_steps", "train_steps"))  # type: ignore[index]
    settings = Optim(
        lr=peak, backbone_factor=1.0, weight_decay=0.05, rule=UPDATES.get(kind, "keras"), beta2=0.95,  # type: ignore[arg-type]
        schedule="linear", warmup=warmup / total, hold=0.0,
    )  # fmt: skip
    optimizer = make_optimizer(network, settings)
    velocities = {p: torch.zeros_like(p) for p in network.parameters()}

    def adamw(step: int) -> float:
        set_rate(optimizer, rate_factor(step, total, settings))
        optimizer.step()
        return optimizer.param_groups[0]["lr"]

    @torch.no_grad()
    def momentum(step: int) -> float:
        """Keras' SGD with Nesterov momentum 0.9, which boxwright does not have: the velocity includes the rate."""
        rate = peak * rate_factor(step, total, settings)
        for parameter, velocity in velocities.items():
            assert parameter.grad is not None
            velocity.mul_(0.9).sub_(parameter.grad, alpha=rate)
            parameter.add_(0.9 * velocity - rate * parameter.grad)
        return rate

    assert kind in UPDATES or kind == "momentum", f"an optimizer that we do not know: {kind}"
    assert math.isclose(settings.warmup * total, warmup)  # type: ignore[operator]
    return momentum if kind == "momentum" else adamw
