import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.models.sequence import targets as s
from boxwright.models.sequence.vocabulary import FIRST_CLASS, NOISE, PAD, Vocabulary
from boxwright.types import Batch
from helpers import pix2seq_golden

GOLDEN, NOISE_LAW = pix2seq_golden.tokens(), pix2seq_golden.noise()
VOCABULARY = Vocabulary()


def official_objects() -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes xyxy and class tokens of the golden responses; label -70 is noise, 0 is no object."""
    labels = GOLDEN["resp_label"]
    classes = torch.where(labels > 0, labels + FIRST_CLASS, torch.where(labels < 0, NOISE, PAD))
    return GOLDEN["resp_bbox"][..., [1, 0, 3, 2]], classes


def share(values: torch.Tensor, law: dict) -> torch.Tensor:
    """Difference of two histograms as the share of draws that would have to move."""
    counts = torch.histc(values.flatten().float(), len(law["hist"]), law["lo"], law["hi"])
    official = torch.tensor(law["hist"]).float()
    return (counts / counts.sum() - official / official.sum()).abs().sum() / 2


def make_batch(counts: list[int], sizes: list[tuple[int, int]], side: int = 100) -> Batch:
    """Small boxes inside the image part of each canvas."""
    n = max([*counts, 1])
    part = torch.tensor(sizes) / side
    low = torch.rand(len(counts), n, 2) * 0.8 * part.flip(-1)[:, None]
    boxes = torch.cat([low, low + 0.1 * part.flip(-1)[:, None]], -1)
    valid = torch.arange(n)[None] < torch.tensor(counts)[:, None]
    return Batch(
        images_BCHW=torch.zeros(len(counts), 3, side, side, dtype=torch.uint8),
        sizes_B2=torch.tensor(sizes),
        originals_B2=torch.tensor(sizes),
        boxes_BN4=boxes * valid[..., None],
        labels_BN=torch.randint(0, 3, valid.shape) * valid,
        valid_BN=valid,
        index_B=torch.arange(len(counts)),
    )


def test_sequences_equal_the_official_ones():
    boxes, classes = official_objects()
    made = s.to_sequences(boxes, classes, classes, VOCABULARY, 35)
    assert (made.targets_BL == GOLDEN["resp_seq"]).all()
    assert (made.inputs_BL == GOLDEN["pb0_input_seq"]).all()
    assert (made.targets_BL == GOLDEN["pb0_target_seq"]).all()
    torch.testing.assert_close(made.weights_BL, GOLDEN["pb0_token_weights"])


def test_a_longer_sequence_ends_in_padding():
    boxes, classes = official_objects()
    made = s.to_sequences(boxes, classes, classes, VOCABULARY, 50)
    assert (made.targets_BL == GOLDEN["pb1_target_seq"]).all()
    assert (made.weights_BL[:, 35:] == 0.1).all()


def test_only_classes_are_corrupted_and_only_in_what_is_read():
    boxes, classes = official_objects()
    inputs = GOLDEN["resp_seq_input_rand_n_fake_cls"]
    made = s.to_sequences(boxes, classes, inputs[:, 4::5], VOCABULARY, 35)
    assert (made.inputs_BL[:, 1:] == inputs[:, :-1]).all()
    assert (made.targets_BL == GOLDEN["resp_seq"]).all()


def test_the_documented_example():
    boxes = torch.tensor([[[0.2, 0.1, 0.75, 0.5], [0, 0, 1, 1], [0.25, 0.25, 0.5, 0.5005], [0, 0, 0, 0]]])
    classes = torch.tensor([[101, 190, NOISE, PAD]])
    made = s.to_sequences(boxes, classes, classes, VOCABULARY, 20)
    assert made.targets_BL[0].tolist() == [
        *(1100, 1200, 1500, 1749, 101),
        *(1000, 1000, 1999, 1999, 190),
        *(1250, 1250, 1500, 1500, 30),
        *(0, 0, 0, 0, 0),
    ]
    expected = torch.tensor([1.0] * 10 + [0.0] * 4 + [1.0] + [0.1] * 5)
    torch.testing.assert_close(made.weights_BL[0], expected)


def test_corruption_follows_the_official_law():
    torch.manual_seed(0)
    classes = s.corrupted_classes(torch.full((1, 100_000), 101), VOCABULARY)
    law = NOISE_LAW["rand_n_fake_cls"]
    drawn = classes[classes != NOISE]
    assert abs((classes == NOISE).float().mean() - law["fraction_fake_30"]) < 0.01
    assert (drawn.min(), drawn.max()) == (law["random_token_min"], law["random_token_max"])
    counts = torch.histc(drawn.float(), 10, 100, 1000) / len(drawn)
    assert (counts - 0.1).abs().max() < 0.006


def test_each_kind_of_noise_follows_the_official_law():
    torch.manual_seed(0)
    y = {"ymin": 1, "xmin": 0, "ymax": 3, "xmax": 2}
    boxes = s.random_boxes(torch.zeros(1, 100_000, 4))
    moved = s.moved_boxes(torch.tensor([0.3, 0.2, 0.9, 0.5]).expand(1, 100_000, 4))
    for made, law in ((boxes, NOISE_LAW["random"]), (moved, NOISE_LAW["shift"])):
        for name, column in y.items():
            assert share(made[..., column], law[name]) < 0.015
        width, height = ((made[..., 2:] - made[..., :2]) - 1e-6).unbind(-1)  # a width of .6 is on the edge of a bin
        assert share(width, law["w"]) < 0.015
        assert share(height, law["h"]) < 0.015
    rate = (s.jittered_boxes(torch.tensor([0.3, 0.2, 0.9, 0.5]).expand(1, 100_000, 4))[..., 1] - 0.2) / 0.3
    assert share(rate, NOISE_LAW["jitter_rate"]["ymin"]) < 0.015


def test_the_mixture_of_noise_follows_the_official_law():
    torch.manual_seed(0)
    real = torch.tensor(NOISE_LAW["gt_yxyx"])[:, [1, 0, 3, 2]]
    boxes, images = torch.zeros(2000, 100, 4), 2000
    boxes[:, :3] = real
    made = s.with_noise(boxes, (torch.arange(100) < 3).expand(images, -1))
    assert (made[:, :3] == real).all()
    for name, column in {"ymin": 1, "xmin": 0, "ymax": 3, "xmax": 2}.items():
        assert share(made[:, 3:, column], NOISE_LAW["all_noise_boxes"][name]) < 0.03


def test_the_number_of_repetitions_is_uniform():
    torch.manual_seed(0)
    boxes = torch.zeros(20_000, 11, 4)
    boxes[:, 0] = torch.tensor([0.45, 0.45, 0.451, 0.451])  # so small that nothing else comes near it by chance
    made = s.with_noise(boxes, (torch.arange(11) < 1).expand(len(boxes), -1))
    near = ((made[:, 1:] - boxes[:, :1]).abs().amax(-1) < 0.00011).sum(1)
    counts = torch.bincount(near, minlength=11)[:11] / len(boxes)
    assert (counts - 1 / 11).abs().max() < 0.01


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(1, 15), st.integers(1, 3), st.integers(0, 9))
@pytest.mark.filterwarnings("ignore:an image has more objects")
def test_every_real_object_is_written_once_and_noise_stays_in_the_image(counts, most, each, seed):
    torch.manual_seed(seed)
    batch = make_batch(counts, [(100, 60)] * len(counts))
    made = s.training_sequences(batch, VOCABULARY, most, 5 * most + 2, each)
    objects = made.targets_BL[:, : 5 * most].view(len(counts), each, most, 5)
    edge = VOCABULARY.quantise(torch.tensor(0.6)) + 1000
    assert (objects[..., [1, 3]] <= edge).all()
    assert ((objects[..., :4] >= 1000) & (objects[..., :4] < 2000)).all()
    assert (made.targets_BL[:, 5 * most :] == PAD).all()
    for image, n in enumerate(counts):
        boxes = VOCABULARY.coordinate_tokens(batch.boxes_BN4[image, :n])
        classes = VOCABULARY.class_tokens(batch.labels_BN[image, :n, None])
        true = {tuple(row) for row in torch.cat([boxes, classes], 1).tolist()}
        for sequence in objects[image]:
            real = [tuple(row) for row in sequence.tolist() if row[4] != NOISE]
            assert len(real) == min(n, most)
            assert set(real) <= true
            assert n > most or set(real) == true


@pytest.mark.filterwarnings("ignore:an image has more objects")
def test_the_order_changes_and_every_object_gets_its_turn_when_there_are_too_many():
    torch.manual_seed(0)
    batch = make_batch([10], [(100, 100)])
    made = s.training_sequences(batch, VOCABULARY, 3, 15, per_image=200)
    firsts = {tuple(row) for row in made.targets_BL[:, :4].tolist()}
    assert len(firsts) == 10


def test_images_without_objects_are_all_noise():
    made = s.training_sequences(make_batch([0, 0], [(100, 100), (50, 100)]), VOCABULARY, 4, 20)
    assert (made.targets_BL[:, 4::5] == NOISE).all()
    assert made.weights_BL.sum() == 8


def test_without_noise_a_sequence_ends_after_its_last_object():
    batch = make_batch([2, 0], [(100, 100), (50, 100)])
    made = s.training_sequences(batch, VOCABULARY, 4, 24, per_image=2, noise=False)
    lengths = [(row != PAD).sum().item() for row in made.targets_BL]
    assert lengths == [10, 10, 0, 0]
    assert (made.targets_BL != NOISE).all()
    assert (made.weights_BL == torch.where(made.targets_BL == PAD, s.PAD_WEIGHT, 1.0)).all()


def test_the_true_class_is_hardly_ever_read():
    torch.manual_seed(0)
    batch = make_batch([30], [(100, 100)])
    batch = replace(batch, labels_BN=torch.zeros_like(batch.labels_BN))
    made = s.training_sequences(batch, VOCABULARY, 30, 151, per_image=20)
    inputs = made.inputs_BL[:, 5:151:5]
    assert (inputs == 101).float().mean() < 0.01


def test_the_same_seed_gives_the_same_sequences():
    batch = make_batch([3, 1], [(100, 100), (50, 100)])
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append(s.training_sequences(batch, VOCABULARY, 6, 32, 2))
    assert all((a == b).all() for a, b in zip(*made, strict=True))


def test_words_that_do_not_fit_are_refused():
    boxes, classes = official_objects()
    with pytest.raises(AssertionError):
        s.to_sequences(boxes, classes, classes, VOCABULARY, 34)


def test_a_warning_says_that_objects_are_left_out():
    boxes, labels = torch.rand(2, 5, 4), torch.zeros(2, 5, dtype=torch.int64)
    valid = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    with pytest.warns(UserWarning, match="more objects than the 3 of a sequence: as many as fit are taught"):
        s.order_objects(boxes, labels, valid, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert s.order_objects(boxes, labels, valid, 5)[2].sum() == 7
        assert s.order_objects(boxes[1:], labels[1:], valid[1:], 3)[2].sum() == 2
