"""Hungarian matching of all decoder layers in one call, and loops over images and layers, in turns in one run.

    python benchmarks/matching.py [--images 32] [--queries 300] [--layers 6] [--objects 7] [--cuda]

Both loops compute the same costs (focal class cost, L1, generalised IoU) and call the same solver.

- image by image: a matrix for each layer and image, with the objects of that image;
- layer by layer: as in the originals; a matrix for each layer, of all queries and the objects of all images, of which
  the diagonal blocks are used.

The number of objects per image is random, from 1 to twice the mean, less one. Times are CPU time of the process (wall
time with `--cuda`), the median of `--rounds`; all assignments are checked to be the same. With `--crowd N`, memory: how
much more the process holds at its peak when one image has N objects.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou

from boxwright.boxes import cxcywh_to_xyxy
from boxwright.models.losses.focal import focal_cost
from boxwright.models.losses.set_criterion import LayerPredictions, Targets, assign

CLASSES = 80
Pairs = list[list[tuple[Tensor, Tensor]]]  # of each layer and image: queries, and their objects


def drawn(layers: int, counts: list[int], queries: int, device: str) -> tuple[LayerPredictions, Targets]:
    """Scores and boxes like those of an untrained network, and objects."""

    def boxes(*shape: int) -> Tensor:
        return torch.rand(*shape, 4, device=device) * 0.5 + torch.tensor([0.25, 0.25, 0.01, 0.01], device=device)

    images, most = len(counts), max(counts)
    valid = torch.arange(most, device=device) < torch.tensor(counts, device=device)[:, None]
    layer_predictions = LayerPredictions(
        torch.randn(layers, images, queries, CLASSES, device=device), boxes(layers, images, queries)
    )
    labels = torch.randint(CLASSES, (images, most), device=device)
    return layer_predictions, Targets(boxes(images, most) * valid[..., None], labels, valid, valid.sum().float())


def together(layers: LayerPredictions, targets: Targets) -> Tensor:
    """Ours."""
    return assign(layers, targets, layers.logits_LBQR, lambda logits: 2 * focal_cost(logits.sigmoid()))


def costs(logits: Tensor, boxes: Tensor, labels: Tensor, true: Tensor) -> Tensor:
    """Costs (Q, N) of queries and objects."""
    classes = 2 * focal_cost(logits.sigmoid())[:, labels]
    return (
        classes
        + 5 * torch.cdist(boxes, true, p=1)
        - 2 * generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(true))
    )


def solve(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The assigned queries, and their objects."""
    queries, objects = linear_sum_assignment(cost.cpu())
    return torch.from_numpy(queries), torch.from_numpy(objects)


def image_by_image(layers: LayerPredictions, objects: list[tuple[Tensor, Tensor]]) -> Pairs:
    """A matrix for each layer and image."""
    return [
        [solve(costs(logits, boxes, *own)) for logits, boxes, own in zip(*layer, objects, strict=True)]
        for layer in zip(*layers, strict=True)
    ]


def layer_by_layer(layers: LayerPredictions, objects: list[tuple[Tensor, Tensor]]) -> Pairs:
    """A matrix for each layer, of all queries and all objects."""
    labels, true = (torch.cat(parts) for parts in zip(*objects, strict=True))
    counts = [len(own) for own, _ in objects]
    pairs = []
    for logits, boxes in zip(*layers, strict=True):
        cost = costs(logits.flatten(0, 1), boxes.flatten(0, 1), labels, true).view(len(objects), -1, len(labels)).cpu()
        pairs.append([solve(part[image]) for image, part in enumerate(cost.split(counts, -1))])
    return pairs


def is_same(matched_LBN: Tensor, pairs: Pairs) -> bool:
    """Whether all objects have the same queries."""
    again_LBN = torch.full_like(matched_LBN, -1).cpu()
    for layer, images in enumerate(pairs):
        for image, (queries, objects) in enumerate(images):
            again_LBN[layer, image, objects] = queries
    return torch.equal(matched_LBN.cpu(), again_LBN)


def in_turns(ways: dict[str, Callable[[], object]], rounds: int, cuda: bool) -> dict[str, float]:
    """Median milliseconds of each way, after a round of warming up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    clock = time.perf_counter if cuda else time.process_time
    for turn in range(rounds + 1):
        for name, way in ways.items():
            if cuda:
                torch.cuda.synchronize()
            started = clock()
            way()  # ends on the host, and so waits for the device
            if turn:
                taken[name].append((clock() - started) * 1000)
    return {name: statistics.median(times) for name, times in taken.items()}


def crowd(a: argparse.Namespace, device: str) -> None:
    """Memory when one image of the batch has many objects."""
    layers, targets = drawn(a.layers, [a.crowd] + [1] * (a.images - 1), a.queries, device)

    def peak() -> float:
        if a.cuda:
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    before = peak()
    together(layers, targets)
    matrix = a.layers * a.images * a.queries * a.crowd * 4 / 2**20
    held = f"{peak() - before:.0f} MiB more at the peak"
    print(f"one image with {a.crowd} objects: {held}; a padded matrix of all costs is {matrix:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"images": 32, "queries": 300, "layers": 6, "objects": 7, "rounds": 9, "crowd": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cuda", action="store_true")
    a = parser.parse_args()
    device = "cuda" if a.cuda else "cpu"
    torch.manual_seed(0)
    if a.crowd:
        crowd(a, device)
        return
    counts = torch.randint(1, 2 * a.objects, (a.images,)).tolist()
    layers, targets = drawn(a.layers, counts, a.queries, device)
    objects = [(targets.rows_BN[i, :n], targets.boxes_BN4[i, :n]) for i, n in enumerate(counts)]
    loops = {"image by image": image_by_image, "layer by layer": layer_by_layer}
    matched = together(layers, targets)
    same = {name: is_same(matched, loop(layers, objects)) for name, loop in loops.items()}
    ways: dict[str, Callable[[], object]] = {"together (ours)": lambda: together(layers, targets)}
    ways |= {name: lambda loop=loop: loop(layers, objects) for name, loop in loops.items()}
    times = in_turns(ways, a.rounds, a.cuda)
    ours = times["together (ours)"]
    print(f"{a.images} images x {a.queries} queries x {a.layers} layers, {sum(counts)} objects, {device}")
    for name, took in times.items():
        check = "" if name not in same else "   same pairs" if same[name] else "   OTHER PAIRS"
        print(f"{name:<16} {took:8.1f} ms   {took / ours:5.2f} x{check}")


if __name__ == "__main__":
    main()
