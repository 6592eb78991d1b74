"""Training sequences: the tokens that the decoder reads and those it should predict, for a batch on its device.

    objects    real, in random order                    noise, up to M objects
    inputs     >   y1 x1 y2 x2 any   y1 x1 y2 x2 any    y1 x1 y2 x2 any   ...          one position behind:
    targets    y1 x1 y2 x2 class     y1 x1 y2 x2 class  -  -  -  -  noise  ...
    weights    1  1  1  1  1         1  1  1  1  1      0  0  0  0  1     ...          .1 at padding

No input is a true class ("any" is a random class or the noise token), so that the class must be found in the image.
Rules and numbers are those of google-research/pix2seq (data/data_utils.py:264-411,
tasks/object_detection.py:352-418).
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from boxwright.boxes import per_side
from boxwright.models.sequence.patch_vocabulary import PatchVocabulary
from boxwright.models.sequence.vocabulary import FIRST_CLASS, NOISE, PAD, PROMPT, Vocabulary
from boxwright.types import Batch

AnyVocabulary = Vocabulary | PatchVocabulary
PAD_WEIGHT = 0.1
JITTER = 0.05  # standard deviation of a repeated box's sides, relative to its size
RANDOM_SIDE = 0.5  # standard deviation of a random box's height and width, relative to the image


class SequenceTargets(NamedTuple):
    """Input tokens, target tokens, and the weight of each target in the loss."""

    inputs_BL: Tensor
    targets_BL: Tensor
    weights_BL: Tensor


def training_sequences(
    batch: Batch,
    vocabulary: AnyVocabulary,
    max_objects: int,
    length: int,
    per_image: int = 1,
    noise: bool = True,
    shuffle: bool = True,
) -> SequenceTargets:
    """Sequences of a batch, `per_image` different ones for each image, in consecutive rows.

    Args:
        batch: its objects and valid area; noise stays inside that area.
        vocabulary: the token ids.
        max_objects: real and noise objects in a sequence; of more real ones, random ones are left out.
        length: tokens in a sequence; padded behind the objects.
        per_image: sequences for each image.
        noise: fill up with noise objects; else the sequence ends after the last real one.
        shuffle: objects stand in random order, else in that of the data set.
    """
    boxes_BN4, labels_BN, valid_BN = (
        x.repeat_interleave(per_image, 0) for x in (batch.boxes_BN4, batch.labels_BN, batch.valid_BN)
    )
    boxes_BM4, labels_BM, real_BM = order_objects(boxes_BN4, labels_BN, valid_BN, max_objects, shuffle)
    ratios_B14 = _valid_ratios(batch).repeat_interleave(per_image, 0)[:, None]
    if noise:
        boxes_BM4 = with_noise(boxes_BM4 / ratios_B14, real_BM) * ratios_B14
    classes_BM = torch.where(real_BM, vocabulary.class_tokens(labels_BM), NOISE if noise else PAD)
    return to_sequences(boxes_BM4, classes_BM, corrupted_classes(classes_BM, vocabulary), vocabulary, length)


def encode_targets(batch: Batch, vocabulary: AnyVocabulary, max_objects: int, ends: bool) -> SequenceTargets:
    """The objects in the order of the data set, nothing drawn: weight 1 for each of their tokens, else 0.

    Args:
        batch: boxes and labels.
        vocabulary: the token ids.
        max_objects: more are left out.
        ends: the end token behind the last object has weight 1, too.
    """
    real_BM = batch.valid_BN[:, :max_objects]
    classes_BM = vocabulary.class_tokens(batch.labels_BN[:, :max_objects]).where(real_BM, PAD)
    length = vocabulary.slots * real_BM.shape[1] + ends
    sequences = to_sequences(batch.boxes_BN4[:, :max_objects], classes_BM, real_BM * NOISE, vocabulary, length)
    count_B1 = vocabulary.slots * real_BM.sum(1, keepdim=True) + ends
    return sequences._replace(weights_BL=(torch.arange(length, device=count_B1.device) < count_B1).float())


def to_sequences(
    boxes_BM4: Tensor, classes_BM: Tensor, input_classes_BM: Tensor, vocabulary: AnyVocabulary, length: int
) -> SequenceTargets:
    """Sequences of objects in the given order.

    Args:
        boxes_BM4: xyxy in [0, 1] of the canvas.
        classes_BM: tokens of classes, of noise, or 0 where a row is empty.
        input_classes_BM: the same in the inputs.
        vocabulary: the token ids.
        length: tokens in a sequence, at least those of M objects.
    """
    corners_BMC = vocabulary.coordinate_tokens(boxes_BM4) * (classes_BM != PAD)[..., None]
    objects_BMS = torch.cat([corners_BMC, classes_BM[..., None]], -1)
    targets_BL = flatten_objects(objects_BMS, length)
    inputs_BL = flatten_objects(torch.cat([corners_BMC, input_classes_BM[..., None]], -1), length)
    prompt_B1 = torch.full_like(inputs_BL[:, :1], PROMPT)
    weights_BMS = torch.ones_like(objects_BMS, dtype=torch.float)
    weights_BMS[..., :-1] = (classes_BM != NOISE)[..., None]
    weights_BL = flatten_objects(weights_BMS, length).masked_fill(targets_BL == PAD, PAD_WEIGHT)
    return SequenceTargets(torch.cat([prompt_B1, inputs_BL[:, :-1]], 1), targets_BL, weights_BL)


def flatten_objects(objects_BMS: Tensor, length: int) -> Tensor:
    """Objects one after the other, padded with zeros to `length`."""
    flat_BL = objects_BMS.flatten(1)
    assert flat_BL.shape[1] <= length, f"{flat_BL.shape[1]} tokens do not fit into {length}"
    return torch.nn.functional.pad(flat_BL, (0, length - flat_BL.shape[1]))


def corrupted_classes(classes_BM: Tensor, vocabulary: AnyVocabulary) -> Tensor:
    """The class tokens of the inputs: half noise, half any class at random, for real and noise objects alike."""
    random_BM = torch.randint_like(classes_BM, FIRST_CLASS, vocabulary.first_coordinate)
    coin_BM = torch.rand(classes_BM.shape, device=classes_BM.device) > 0.5
    return torch.where(coin_BM, random_BM, NOISE) * (classes_BM != PAD)


def order_objects(
    boxes_BN4: Tensor, labels_BN: Tensor, valid_BN: Tensor, rows: int, shuffle: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Objects of each image in random or their own order, real ones first, cut or padded to this number of rows.

    Where real ones are cut, a warning says so once.
    """
    if valid_BN.shape[1] > rows and bool((valid_BN.sum(1) > rows).any()):  # the same text each time: shown once
        cut = f"an image has more objects than the {rows} of a sequence: as many as fit are taught, at random"
        warnings.warn(f"{cut}; `detector.lengthen` of a pix2seq or patchseq makes room, in Python.", stacklevel=2)
    order_BM = _random_order(valid_BN) if shuffle else (~valid_BN).byte().argsort(dim=1, stable=True)
    order_BM = order_BM[:, :rows]
    picked = (boxes_BN4.gather(1, order_BM[..., None].expand(-1, -1, 4)), labels_BN.gather(1, order_BM))
    valid_BM = valid_BN.gather(1, order_BM)
    missing = max(rows - valid_BN.shape[1], 0)
    boxes_BM4, labels_BM = (torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], 1) for x in picked)
    return boxes_BM4, labels_BM, torch.cat([valid_BM, valid_BM.new_zeros(len(valid_BM), missing)], 1)


def with_noise(boxes_BM4: Tensor, real_BM: Tensor) -> Tensor:
    """Boxes in [0, 1] of the image, the real ones first, with noise in all other rows.

    Of the noise, a uniformly drawn number are jittered copies of real boxes; of the others about half are real boxes
    moved elsewhere, and half are random.
    """
    rows = real_BM.shape[1]
    n_B1 = real_BM.sum(1, keepdim=True)
    free_B1 = rows - n_B1
    repeats_B1 = (torch.rand_like(free_B1, dtype=torch.float) * (free_B1 + 1)).long().clamp(max=free_B1) * (n_B1 > 0)
    others_B1 = free_B1 - repeats_B1
    pool_BM4 = _pool(boxes_BM4, n_B1, free_B1)
    row_1M = torch.arange(rows, device=real_BM.device)[None]
    moved_BM = (row_1M < others_B1) & (n_B1 > 0)
    either_BR4 = torch.cat([moved_boxes(pool_BM4), random_boxes(boxes_BM4)], 1)
    other_BM4 = _pick(either_BR4, _random_order(torch.cat([moved_BM, row_1M < others_B1], 1))[:, :rows])
    repeat_BM4 = _pick(jittered_boxes(pool_BM4), (row_1M - others_B1).clamp(min=0))
    noise_BM4 = torch.where((row_1M < others_B1)[..., None], other_BM4, repeat_BM4)
    noise_BM4 = _pick(noise_BM4, _random_order(row_1M < free_B1))
    return torch.where(real_BM[..., None], boxes_BM4, _pick(noise_BM4, (row_1M - n_B1).clamp(min=0)))


def jittered_boxes(boxes_BM4: Tensor) -> Tensor:
    """Each side moved by a truncated normal of 5 % (at most 10 %) of the height or width, clipped to [0, 1]."""
    size_BM4 = (boxes_BM4[..., 2:] - boxes_BM4[..., :2]).repeat(1, 1, 2)
    return (boxes_BM4 + truncated_normal(boxes_BM4, JITTER) * size_BM4).clamp(0, 1)


def moved_boxes(boxes_BM4: Tensor) -> Tensor:
    """The same heights and widths around uniform centres, clipped to [0, 1]."""
    half_BM2 = (boxes_BM4[..., 2:] - boxes_BM4[..., :2]) / 2
    centre_BM2 = torch.rand_like(half_BM2)
    return torch.cat([centre_BM2 - half_BM2, centre_BM2 + half_BM2], -1).clamp(0, 1)


def random_boxes(like_BM4: Tensor) -> Tensor:
    """Uniform centres, sides of the absolute value of a truncated normal, clipped to [0, 1]."""
    half_BM2 = truncated_normal(like_BM4[..., :2], RANDOM_SIDE).abs() / 2
    centre_BM2 = torch.rand_like(half_BM2)
    return torch.cat([centre_BM2 - half_BM2, centre_BM2 + half_BM2], -1).clamp(0, 1)


def truncated_normal(like: Tensor, std: float) -> Tensor:
    """Normal draws truncated at two standard deviations; by inversion, so that nothing waits for the device."""
    inside = 0.9544997361036416  # erf(sqrt(2))
    return torch.erfinv((torch.rand_like(like) * 2 - 1) * inside) * (std * 2**0.5)


def _valid_ratios(batch: Batch) -> Tensor:
    """Width, height, width, height of the valid area in [0, 1] of the canvas, (B, 4)."""
    canvas_2 = torch.tensor(batch.images_BCHW.shape[-2:], device=batch.sizes_B2.device)
    return per_side(batch.sizes_B2 / canvas_2)


def _pool(boxes_BM4: Tensor, n_B1: Tensor, free_B1: Tensor) -> Tensor:
    """The n real boxes over and over, as often as the free rows need them, then shuffled; (B, M, 4)."""
    count_B1 = n_B1 * (free_B1 // n_B1.clamp(min=1) + 1)  # never more than M
    order_BM = _random_order(torch.arange(boxes_BM4.shape[1], device=n_B1.device)[None] < count_B1)
    return _pick(boxes_BM4, order_BM % n_B1.clamp(min=1))


def _random_order(wanted_BN: Tensor) -> Tensor:
    """Positions in random order, the wanted ones first, (B, N)."""
    return torch.rand(wanted_BN.shape, device=wanted_BN.device).masked_fill(~wanted_BN, 2).argsort(1)


def _pick(boxes_BN4: Tensor, index_BM: Tensor) -> Tensor:
    return boxes_BN4.gather(1, index_BM[..., None].expand(-1, -1, 4))
