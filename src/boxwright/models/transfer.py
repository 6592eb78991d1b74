"""A trained detector as the beginning of another: the same network for other classes, or another image size.

What it knows of a class goes with the class's name. Classes that it does not know begin afresh.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from boxwright.config import require
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.deformable import Deformable
from boxwright.models.dense import Dense
from boxwright.models.detr import Detr
from boxwright.models.layers.position_encoding import resize_2d
from boxwright.models.patchseq import PatchSeq
from boxwright.models.pix2seq import Pix2Seq
from boxwright.models.replication import Replication, most_classes
from boxwright.models.sequence.vocabulary import FIRST_CLASS
from boxwright.types import Detector


def begin_from(
    source: Detector, names: tuple[str, ...], image_size: int | None = None, pretrained: bool = True
) -> Detector:
    """A detector of these classes with the weights of `source`.

    Args:
        source: any detector of the zoo.
        names: the classes.
        image_size: instead of that of `source`.
        pretrained: the backbone learns as one that began from ImageNet weights does: its norms and stem rest.

    Raises:
        UserError: for more classes than a sentence writer has words.
    """
    size = image_size or source.image_size
    if isinstance(source, Dense):
        dense = Dense(replace(source.config, image_size=size), names, pretrained=False)
        if pretrained:
            dense.backbone.freeze()
        _copy_by_name(source, dense)
        return dense
    if isinstance(source, Detr | Deformable):
        return _with_other_rows(source, names, size, pretrained)
    if isinstance(source, PatchSeq):
        return _with_other_words(source, names, size, pretrained)
    if isinstance(source, Pix2Seq):
        words = range(1, source.vocabulary.most_classes + 1)
        grid = source.encoder.positions.grid
        config = replace(source.config, image_size=size, grid=grid, class_ids=_numbers(source, names, words))
        detector: Detector = Pix2Seq(config, names, pretrained=False)
        if pretrained and isinstance(detector.backbone, Backbone):
            detector.backbone.freeze()
    else:
        assert isinstance(source, Replication)
        words = range(most_classes(source.config))
        detector = Replication(replace(source.config, image_size=size, class_ids=_numbers(source, names, words)), names)
    detector.load_state_dict(source.state_dict())
    return detector


@torch.no_grad()
def _with_other_rows(source: Detr | Deformable, names: tuple[str, ...], size: int, pretrained: bool) -> Detector:
    """The same network with one row of its head for each class, whatever rows the head of `source` has besides."""
    config = replace(source.config, image_size=size, class_rows=0, class_ids=())
    target = type(source)(config, names, pretrained=False)  # type: ignore[arg-type]
    if pretrained:
        target.backbone.freeze()
    row_of_class = dict(zip(source.names, source.rows_K.tolist(), strict=True))
    known = [(row_of_class[name], row) for row, name in enumerate(names) if name in row_of_class]
    state = target.state_dict()
    for key, value in source.state_dict().items():
        if key.startswith("classify.") or key == "label_embedding":
            for old, new in _rows(source, key, known):
                state[key][new] = value[old]
        else:
            state[key].copy_(value)
    return target


@torch.no_grad()
def _with_other_words(source: PatchSeq, names: tuple[str, ...], size: int, pretrained: bool) -> PatchSeq:
    """The same network with a word for each class; patches learned by heart are stretched over the new canvas."""
    target = PatchSeq(replace(source.config, image_size=size), names, pretrained=False)
    if pretrained:
        target.backbone.freeze()
    first, state = FIRST_CLASS + 1, target.state_dict()
    for key, value in source.state_dict().items():
        if key in ("decoder.token_embedding", "decoder.output_bias"):
            state[key][:first] = value[:first]
            state[key][first + len(names) :] = value[first + len(source.names) :]
            _copy_rows(value[first:], state[key][first:], source.names, names)
        elif key == "decoder.patch_embedding":
            state[key].copy_(resize_2d(value, source.decoder.grid, target.decoder.grid))
        else:
            state[key].copy_(value)
    return target


def _rows(source: Detr | Deformable, key: str, known: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs of an old and a new row: those of known classes, and those that stand for something else."""
    if isinstance(source, Detr):
        return [*known, (-1, -1)]  # nothing
    ranking = f"classify.{len(source.classify) - 1}."
    if source.config.proposes_anything and key.startswith(ranking):
        return [(0, 0)]  # any object, as published
    return known


def _numbers(source: Pix2Seq | Replication, names: Sequence[str], words: range) -> tuple[int, ...]:
    """A number for each class: its own where the source knows it, else one without a class, or of a class left out."""
    known = dict(zip(source.names, source.config.class_ids or words, strict=False))
    unused = [number for number in words if number not in known.values()]
    spare = iter([*unused, *(number for name, number in known.items() if name not in names)])
    require(len(names) <= len(words), f"these weights have words for {len(words)} classes, not for {len(names)}.")
    return tuple(known[name] if name in known else next(spare) for name in names)


@torch.no_grad()
def _copy_by_name(source: Dense, target: Dense) -> None:
    """All weights, those of classes row by row."""
    width, state = source.config.channels, target.state_dict()
    for key, value in source.state_dict().items():
        if key in ("head.many.weight", "head.many.bias", "rivals.leave.weight", "rivals.leave.bias"):
            _copy_rows(value, state[key], source.names, target.names)
        elif key == "rivals.enter.weight":  # columns: features, classes, box and threat
            behind = value.shape[1] - width - len(source.names)
            old, new = value.T, state[key].T
            new[:width], new[-behind:] = old[:width], old[-behind:]
            _copy_rows(old[width:-behind], new[width:-behind], source.names, target.names)
        else:
            state[key].copy_(value)


def _copy_rows(old: Tensor, new: Tensor, old_names: Sequence[str], new_names: Sequence[str]) -> None:
    for row, name in enumerate(new_names):
        if name in old_names:
            new[row] = old[old_names.index(name)]
