"""How well a threshold of best F1, chosen on few objects, does on other ones: ways to choose, and numbers of objects.

    python benchmarks/thresholds.py
    python benchmarks/thresholds.py --weights RUN/last --data DATA --split SPLIT

Points of F1 (of 100) that a chosen threshold loses beside the best one, the mean over `--draws` draws of objects. Ways
to choose: the score of best F1 itself ("best"), and the middle of the plateau that lies no more than some standard
errors below it; `boxwright.evaluation.thresholds` takes two.

Without weights, scores come from beta distributions, those of right detections and of wrong ones, in five settings from
an easy set to a detector whose scores are all low; F1 of a threshold is that of 20,000 objects. With weights, a
threshold is chosen on random images, for each class, and F1 is that of the other images.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jsonargparse import auto_cli

from boxwright.checkpoints.detector_file import load_detector
from boxwright.data.cache import build
from boxwright.data.read import read
from boxwright.data.records import Record
from boxwright.evaluation import thresholds
from boxwright.evaluation.coco import renamed, score
from boxwright.evaluation.matches import Matches
from boxwright.evaluation.run import detect
from boxwright.evaluation.thresholds import Curve

ERRORS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # 0 is the score of best F1
OBJECTS = (5, 10, 20, 40, 80, 320)
MANY = 20_000


class Setting(NamedTuple):
    """Scores of a detector.

    Attributes:
        recall: share of objects that some detection matches.
        wrong: wrong detections for each object.
        right_scores, wrong_scores: the two numbers of a beta distribution.
    """

    recall: float
    wrong: float
    right_scores: tuple[float, float]
    wrong_scores: tuple[float, float]


SETTINGS = {
    "easy": Setting(0.98, 3, (6, 3), (1, 6)),
    "low scores": Setting(0.95, 4, (4, 6), (1.2, 8)),
    "hard": Setting(0.8, 5, (2.5, 4), (1.2, 4)),
    "many detections": Setting(0.97, 20, (8, 4), (0.3, 6)),
    "very low scores": Setting(0.9, 6, (3, 30), (0.8, 30)),
}


def main(
    weights: Path | None = None,
    data: Path | None = None,
    split: str = "val",
    draws: int = 100,
    seed: int = 0,
) -> None:
    """Print the tables.

    Args:
        weights: a detector, instead of distributions.
        data: annotated images that it has not learned from.
        split: of the data.
        draws: of objects, or of images to choose on.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    if weights is None or data is None:
        for name, setting in SETTINGS.items():
            rest = _draw(random, setting, MANY)
            print(f"\n{name}: best F1 {Curve.of(rest).f1().max():.3f}")
            _table(OBJECTS, "objects", lambda n, setting=setting, rest=rest: (_draw(random, setting, n), rest), draws)
        return
    detector, dataset = load_detector(weights), read(data)
    records = dataset.splits[split]
    found = [renamed(one, dataset.names) for one in detect(detector, build(records, detector.image_size))]
    images = [_matches([record], [one], dataset.names) for record, one in zip(records, found, strict=True)]
    counts = [n for n in (5, 10, 20, 40, 80, 160) if 2 * n <= len(images)]
    for k, name in enumerate(dataset.names):
        own = [image.of_class(k) for image in images]
        whole = _joined(own)
        print(f"\n{name}: {whole.objects_K.sum() / len(images):.1f} objects an image, best F1 on all "
              f"{Curve.of(whole).f1().max():.3f}")  # fmt: skip
        _table(counts, "images", lambda n, own=own: _parted(random, own, n), draws)


def _table(counts: Sequence[int], what: str, draw: Callable[[int], tuple[Matches, Matches]], draws: int) -> None:
    """A row for each number of objects or images: what each way to choose loses, in points."""
    heads = ["best", *(f"{errors:g} errors" for errors in ERRORS[1:])]
    print(f"| {what} | {' | '.join(heads)} |\n{'| ---: ' * (len(heads) + 1)}|")
    for n in counts:
        lost = np.array([_lost(*draw(n)) for _ in range(draws)])
        print(f"| {n} | {' | '.join(f'{value:.2f}' for value in 100 * lost.mean(0))} |")


def _lost(chosen_on: Matches, rest: Matches) -> list[float]:
    """F1 on the rest that each way to choose loses; a threshold of 0.5 where none can be chosen."""
    curve, other = Curve.of(chosen_on), Curve.of(rest)
    lost = []
    for errors in ERRORS:
        thresholds.ERRORS = errors
        threshold = curve.best()
        f1 = other.at(np.array([0.5 if threshold is None else threshold]))[2][0]
        lost.append(float(other.f1().max(initial=0) - f1))
    return lost


def _draw(random: np.random.Generator, setting: Setting, objects: int) -> Matches:
    """Detections of so many objects."""
    right = int((random.random(objects) < setting.recall).sum())
    wrong = int(random.poisson(setting.wrong * objects))
    scores_D = np.concatenate([random.beta(*setting.right_scores, right), random.beta(*setting.wrong_scores, wrong)])
    return Matches(
        scores_D.astype(np.float32).astype(float), np.zeros(len(scores_D), np.int64),
        np.arange(len(scores_D)) < right, np.array([objects]),
    )  # fmt: skip


def _parted(random: np.random.Generator, images: Sequence[Matches], n: int) -> tuple[Matches, Matches]:
    """Of `n` images, and of the others."""
    order = random.permutation(len(images))
    return _joined([images[i] for i in order[:n]]), _joined([images[i] for i in order[n:]])


def _joined(images: Sequence[Matches]) -> Matches:
    """All detections and objects."""
    columns = [np.concatenate([getattr(one, key) for one in images]) for key in ("scores_D", "labels_D", "right_D")]
    return Matches(*columns, np.sum([one.objects_K for one in images], 0))


def _matches(records: list[Record], found: list, names: tuple[str, ...]) -> Matches:
    """Those of one image, which no other image changes."""
    return replace(score(records, found, names).matches)


if __name__ == "__main__":
    auto_cli(main)
