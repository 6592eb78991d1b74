"""Mosaic, mixup and copy-blend: pixels and boxes stay together, and nothing is mixed that was not asked for."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boxwright.boxes import area
from boxwright.config import Augment
from boxwright.data import augment as module
from boxwright.data import copy_blend as copying
from boxwright.data.augment import augment
from boxwright.data.mixing import Mixing
from boxwright.types import Batch, image_mask

SIDE = 96
COLOURS_K3 = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
WAYS = {"cpu": module._resize_each, "other devices": module._sample_together}
PLAIN = Augment(scale=(1.0, 1.0), flip=0.5, colour=0.0, min_visible=0.0, views=1)
ALL = replace(PLAIN, scale=(0.6, 1.4), colour=0.3, min_visible=0.2, mosaic=0.5, mixup=0.5, copy_blend=0.5)

examples = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of resampling, also where there is no other device than the CPU."""
    monkeypatch.setattr(module, "_resize_each", WAYS[request.param])
    return request.param


def painted(rectangles: list[tuple[int, int, int, int] | None], sizes: list[tuple[int, int]]) -> Batch:
    """A rectangle on black in each image, in a colour of its own, which is its label; or nothing."""
    count = len(rectangles)
    boxes_BN4, valid_BN = torch.zeros(count, 1, 4), torch.zeros(count, 1, dtype=torch.bool)
    images_BCHW = torch.zeros(count, 3, SIDE, SIDE, dtype=torch.uint8)
    for k, rectangle in enumerate(rectangles):
        if rectangle is not None:
            x1, y1, x2, y2 = rectangle
            images_BCHW[k, :, y1:y2, x1:x2] = (COLOURS_K3[k, :, None, None] * 255).byte()
            boxes_BN4[k, 0], valid_BN[k] = torch.tensor(rectangle) / SIDE, True
    sizes_B2 = torch.tensor(sizes)
    labels_BN = torch.arange(count)[:, None] * valid_BN
    return Batch(images_BCHW, sizes_B2, sizes_B2 * 2, boxes_BN4, labels_BN, valid_BN, torch.arange(count))


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Two to six images of different shapes, some without a rectangle."""
    rectangles, sizes = [], []
    for _ in range(draw(st.integers(2, 6))):
        height, width = draw(st.sampled_from([(SIDE, 61), (SIDE, SIDE), (50, SIDE)]))
        x1, y1 = draw(st.integers(0, width - 24)), draw(st.integers(0, height - 24))
        rectangle = (x1, y1, draw(st.integers(x1 + 20, width)), draw(st.integers(y1 + 20, height)))
        rectangles.append(draw(st.sampled_from([rectangle, rectangle, rectangle, None])))
        sizes.append((height, width))
    return painted(rectangles, sizes)


def lit(image_CHW: torch.Tensor, label: int, distance: float = 0.45) -> torch.Tensor:
    """(H, W) bool: where an image has the colour of this label."""
    return (image_CHW - COLOURS_K3[label, :, None, None]).abs().amax(0) < distance


def inside(box_4: torch.Tensor, grown: float) -> tuple[slice, slice]:
    """The whole pixels of a box that grew by so many pixels on each side."""
    x1, y1, x2, y2 = (box_4 * SIDE + torch.tensor([-grown, -grown, grown, grown])).clamp(0, SIDE).tolist()
    return slice(round(y1), round(y2)), slice(round(x1), round(x2))


def targets(batch: Batch, row: int) -> list[tuple[int, torch.Tensor]]:
    """Labels and boxes of an image."""
    valid_N = batch.valid_BN[row]
    return list(zip(batch.labels_BN[row, valid_N].tolist(), batch.boxes_BN4[row, valid_N], strict=True))


def assert_all_labelled(image_CHW: torch.Tensor, found: list[tuple[int, torch.Tensor]]) -> None:
    """No pixel with the colour of a rectangle lies outside the boxes of its label."""
    for label in range(len(COLOURS_K3)):
        left_HW = lit(image_CHW, label, 0.2)
        for other, box_4 in found:
            if other == label:
                left_HW[inside(box_4, 1.5)] = False
        assert not left_HW.any(), label


@pytest.mark.usefixtures("way")
@examples
@given(batch=batches(), scale=st.floats(0.4, 2.0), seed=st.integers(0, 1000))
def test_in_a_mosaic_each_rectangle_is_where_its_box_says(batch: Batch, scale: float, seed: int) -> None:
    result = augment(batch, replace(PLAIN, scale=(scale, scale), mosaic=1.0), seed)
    for row in range(len(batch)):
        image_CHW, found = result.images_BCHW[row], targets(result, row)
        assert_all_labelled(image_CHW, found)
        for label, box_4 in found:
            if ((box_4[2:] - box_4[:2]) * SIDE).min() >= 3:
                assert lit(image_CHW, label)[inside(box_4, -1)].all()
                edges_HW = torch.zeros(SIDE, SIDE, dtype=torch.bool)
                edges_HW[inside(box_4, 1)] = True
                edges_HW[inside(box_4, -1)] = False
                assert lit(image_CHW, label)[edges_HW].float().mean() < 0.9  # it ends there, on some side
        limit_4 = result.sizes_B2[row].flip(-1).repeat(2) / SIDE
        assert (result.boxes_BN4[row] <= limit_4 + 1e-6).all()
        assert not image_CHW[:, ~image_mask(image_CHW[None], result.sizes_B2[row : row + 1])[0]].any()


@pytest.mark.usefixtures("way")
def test_a_mosaic_shows_four_different_images_whole_and_half_as_large() -> None:
    batch = painted([(10, 10, 60, 50)] * 6, [(SIDE, SIDE)] * 6)
    result = augment(batch, replace(PLAIN, mosaic=1.0), 3)
    for row in range(6):
        found = targets(result, row)
        assert row in [label for label, _ in found]
        assert len({label for label, _ in found}) == 4
        for _, box_4 in found:
            torch.testing.assert_close((box_4[2:] - box_4[:2]) * SIDE, torch.tensor([25.0, 20.0]), atol=1e-3, rtol=0)


def test_a_mosaic_drops_what_its_crop_hides() -> None:
    batch = painted([(10, 10, 60, 50)] * 6, [(SIDE, SIDE)] * 6)
    dropped = 0
    for seed in range(10):
        every, some = (
            augment(batch, replace(PLAIN, scale=(1.8, 1.8), mosaic=1.0, min_visible=least), seed)
            for least in (0.0, 0.5)
        )
        whole = 50 * 40 * 0.9**2 / SIDE**2
        for row in range(6):
            kept = {label for label, _ in targets(some, row)}
            for label, box_4 in targets(every, row):
                visible = area(box_4).item() / whole
                dropped += label not in kept
                assert abs(visible - 0.5) < 0.05 or (label in kept) == (visible > 0.5)  # edges are on whole pixels
    assert dropped


@examples
@given(batch=batches(), min_visible=st.sampled_from([0.0, 0.8, 1.0]), seed=st.integers(0, 1000))
def test_copied_objects_are_where_their_boxes_say_and_hide_little(batch: Batch, min_visible: float, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "MARGIN", 0.0)  # one pixel
        before = augment(batch, replace(PLAIN, min_visible=min_visible), seed)
        after = augment(batch, replace(PLAIN, min_visible=min_visible, copy_blend=1.0), seed)
    for row in range(len(batch)):
        old, found = targets(before, row), targets(after, row)
        assert len(old) <= len(found) <= len(old) + copying.PASTES
        assert_all_labelled(after.images_BCHW[row], found)
        for label, box_4 in old:
            assert any(label == other and torch.equal(box_4, box) for other, box in found)
        for label, box_4 in found:
            shown = lit(after.images_BCHW[row], label)[inside(box_4, 0)].float().mean()
            assert shown > max(min_visible, 1 - copying.MOST_HIDDEN) - 0.2  # and a margin of one pixel


def test_objects_are_copied_and_those_beside_them_count() -> None:
    batch = painted([(20, 20, 50, 60), None, (0, 0, 20, 20)], [(SIDE, SIDE)] * 3)
    beside_B14 = torch.tensor([30, 30, 60, 50]).expand(3, 1, 4) / SIDE
    batch.boxes_BN4 = torch.cat([batch.boxes_BN4, beside_B14], 1)
    batch.labels_BN = torch.cat([batch.labels_BN, torch.full((3, 1), 5)], 1)
    batch.valid_BN = torch.cat([batch.valid_BN, torch.tensor([[True], [False], [False]])], 1)
    seen = set()
    for seed in range(8):
        result = augment(batch, replace(PLAIN, flip=0.0, min_visible=0.5, copy_blend=1.0), seed)
        copied = targets(result, 1)
        sizes = {label: ((box_4[2:] - box_4[:2]) * SIDE).round().int().tolist() for label, box_4 in copied}
        if 0 in sizes and 5 in sizes:  # copied with the first, of whose box it is two thirds inside, or with it as well
            seen.add(tuple(sizes[5]))
    assert (20, 20) in seen


@examples
@given(batch=batches(), seed=st.integers(0, 1000))
def test_a_mixup_shows_both_images_with_the_objects_of_both(batch: Batch, seed: int) -> None:
    before = augment(batch, PLAIN, seed)
    after = augment(batch, replace(PLAIN, mixup=1.0), seed)
    mixing = Mixing.draw(len(batch), replace(PLAIN, mixup=1.0), seed)
    for row, other, share in zip(
        *(x.tolist() for x in (mixing.mixup_U, mixing.partner_U, mixing.share_U)), strict=True
    ):
        assert row != other
        expected = targets(before, row) + targets(before, other)
        found = targets(after, row)
        assert [label for label, _ in found] == [label for label, _ in expected]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found, expected, strict=True))
        assert after.sizes_B2[row].tolist() == torch.maximum(before.sizes_B2[row], before.sizes_B2[other]).tolist()
        (height, width), images = torch.minimum(*before.sizes_B2[[row, other]]).tolist(), before.images_BCHW
        blend_CHW = share * images[row] + (1 - share) * images[other]
        torch.testing.assert_close(after.images_BCHW[row, :, :height, :width], blend_CHW[:, :height, :width])
        rest_CHW, sum_CHW = after.images_BCHW[row].clone(), (images[row] + images[other])
        rest_CHW[:, :height, :width] = sum_CHW[:, :height, :width] = 0
        assert torch.equal(rest_CHW, sum_CHW)


@pytest.mark.parametrize("views", [1, 2])
def test_the_seed_decides_and_what_is_not_mixed_stays(views: int) -> None:
    batch = painted([(10, 10, 50, 50)] * 6, [(SIDE, SIDE)] * 6)
    some = replace(ALL, views=views, mosaic=0.2, mixup=0.2, copy_blend=0.2)
    first, again, other = augment(batch, some, 7), augment(batch, some, 7), augment(batch, some, 8)
    for field in fields(Batch):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))
    assert not torch.equal(first.images_BCHW, other.images_BCHW)
    assert first.index_B.tolist() == [k // views for k in range(6 * views)]
    plain, mixing = augment(batch, replace(some, mosaic=0.0, mixup=0.0, copy_blend=0.0), 7), Mixing.draw(6, some, 7)
    mixed = {int(row) for rows in (mixing.mosaic_M, mixing.copy_C, mixing.mixup_U) for row in rows}
    assert 0 < len(mixed) < 6 * views
    for row in set(range(6 * views)) - mixed:
        assert torch.equal(first.images_BCHW[row], plain.images_BCHW[row])
        assert torch.equal(first.boxes_BN4[row, :1], plain.boxes_BN4[row])
        assert first.sizes_B2[row].tolist() == plain.sizes_B2[row].tolist()


def test_rows_that_remain_are_in_front_and_no_more_than_needed() -> None:
    batch = painted([(10, 10, 50, 50)] * 6, [(SIDE, SIDE)] * 6)
    for seed in range(10):
        result = augment(batch, ALL, seed)
        counts_B = result.valid_BN.sum(1)
        assert torch.equal(result.valid_BN, torch.arange(int(counts_B.max())) < counts_B[:, None])
        assert not result.boxes_BN4[~result.valid_BN].any()
        assert not result.labels_BN[~result.valid_BN].any()


def test_images_without_objects_are_mixed_too() -> None:
    result = augment(painted([None] * 4, [(SIDE, SIDE)] * 4), replace(ALL, mosaic=1.0, mixup=1.0, copy_blend=1.0), 0)
    assert result.valid_BN.shape == (4, 1)
    assert not result.valid_BN.any()
    assert not result.boxes_BN4.any()


def test_one_image_stays_as_it_is() -> None:
    batch = painted([(10, 10, 50, 50)], [(SIDE, 70)])
    mixed, plain = (augment(batch, replace(ALL, mosaic=p, mixup=p, copy_blend=p), 5) for p in (1.0, 0.0))
    for field in fields(Batch):
        assert torch.equal(getattr(mixed, field.name), getattr(plain, field.name))


def test_both_ways_see_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = painted([(10, 10, 60, 50)] * 6, [(SIDE, 70), (60, SIDE)] * 3)
    here = augment(batch, ALL, seed=1)
    monkeypatch.setattr(module, "_resize_each", module._sample_together)
    there = augment(batch, ALL, seed=1)
    assert (here.images_BCHW - there.images_BCHW).abs().mean() < 0.01
    assert torch.equal(here.boxes_BN4, there.boxes_BN4)
