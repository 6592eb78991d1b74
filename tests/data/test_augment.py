"""Pixels and boxes move together."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from boxwright.boxes import area
from boxwright.config import Augment
from boxwright.data import augment as module
from boxwright.data import augment_plan
from boxwright.data.augment import augment, official_view
from boxwright.data.augment_plan import make_plan, official_size
from boxwright.images import fitted_size
from boxwright.types import Batch, image_mask

SIDE = 96
WAYS = {"cpu": module._resize_each, "other devices": module._sample_together}
NOTHING = Augment(scale=(1.0, 1.0), flip=0.0, colour=0.0, min_visible=0.0, views=1)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of resampling, also where there is no other device than the CPU."""
    monkeypatch.setattr(module, "_resize_each", WAYS[request.param])
    return request.param


def painted(boxes: list[tuple[int, int, int, int]], sizes: list[tuple[int, int]]) -> Batch:
    """One white rectangle on a black image each; boxes in canvas pixels."""
    images_BCHW = torch.zeros(len(boxes), 3, SIDE, SIDE, dtype=torch.uint8)
    for image, (x1, y1, x2, y2) in zip(images_BCHW, boxes, strict=True):
        image[:, y1:y2, x1:x2] = 255
    count = len(boxes)
    return Batch(
        images_BCHW=images_BCHW,
        sizes_B2=torch.tensor(sizes),
        originals_B2=torch.tensor(sizes) * 2,
        boxes_BN4=torch.tensor(boxes)[:, None] / SIDE,
        labels_BN=torch.ones(count, 1, dtype=torch.int64),
        valid_BN=torch.ones(count, 1, dtype=torch.bool),
        index_B=torch.arange(count),
    )


def found(image_CHW: torch.Tensor) -> np.ndarray:
    """The rectangle in an image, to a fraction of a pixel: half-lit edge pixels count by their light."""
    light_HW = image_CHW.mean(0)
    edges = []
    for profile in (light_HW.amax(0), light_HW.amax(1)):
        lit = (profile > 0).nonzero()[:, 0]
        low, high = int(lit[0]), int(lit[-1])
        middle = (low + high + 1) / 2
        total_below = profile[: int(middle)].sum().item() + profile[int(middle)].item() * (middle % 1)
        edges.append((middle - total_below, middle + profile.sum().item() - total_below))
    (x1, x2), (y1, y2) = edges
    return np.array([x1, y1, x2, y2])


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    height, width = draw(st.sampled_from([(SIDE, 61), (SIDE, SIDE), (50, SIDE), (31, SIDE)]))
    x1, y1 = draw(st.integers(0, width - 20)), draw(st.integers(0, height - 20))
    x2, y2 = draw(st.integers(x1 + 16, width)), draw(st.integers(y1 + 16, height))
    return (x1, y1, x2, y2), (height, width)


both_ways = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # the fixture does not change between examples


@pytest.mark.usefixtures("way")
@both_ways
@given(case=cases(), scale=st.floats(0.3, 2.0), flip=st.sampled_from([0.0, 1.0]), seed=st.integers(0, 1000))
def test_a_painted_rectangle_is_where_its_box_says(case: tuple, scale: float, flip: float, seed: int) -> None:
    batch = painted([case[0]], [case[1]])
    result = augment(batch, Augment(scale=(scale, scale), flip=flip, colour=0.0, min_visible=0.0), seed)
    box = result.boxes_BN4[0, 0] * SIDE
    if not result.valid_BN[0, 0]:
        assert result.images_BCHW[0].max() < 1
        return
    if (box[2:] - box[:2]).min() < 2:
        return  # a sliver: its light does not say where its two edges are
    np.testing.assert_allclose(found(result.images_BCHW[0]), box.numpy(), atol=0.6)


@pytest.mark.usefixtures("way")
@both_ways
@given(case=cases(), scale=st.floats(0.1, 3.0), seed=st.integers(0, 1000))
def test_the_image_part_is_at_the_top_left_and_the_rest_is_zero(case: tuple, scale: float, seed: int) -> None:
    batch = painted([case[0]], [case[1]])
    batch.images_BCHW[image_mask(batch.images_BCHW, batch.sizes_B2)[:, None].expand(-1, 3, -1, -1)] = 200
    result = augment(batch, Augment(scale=(scale, scale), flip=0.5, colour=0.3), seed)
    expected = [min(SIDE, max(1, round(n * scale))) for n in case[1]]
    assert (result.sizes_B2[0] - torch.tensor(expected)).abs().max() <= 1  # a half may be rounded either way
    mask_BHW = image_mask(result.images_BCHW, result.sizes_B2)
    assert (result.images_BCHW[:, :, ~mask_BHW[0]] == 0).all()
    inside = result.images_BCHW[0][:, mask_BHW[0]]
    assert inside.min() > 0.3
    assert inside.max() - inside.min() < 1e-3  # no dark border from the padding
    limit = result.sizes_B2[0].flip(-1).repeat(2) / SIDE
    assert (result.boxes_BN4[0, 0] <= limit + 1e-6).all()
    assert (result.boxes_BN4 >= 0).all()


@pytest.mark.usefixtures("way")
def test_without_changes_the_batch_is_the_same(batch: Batch) -> None:
    batch.images_BCHW *= image_mask(batch.images_BCHW, batch.sizes_B2)[:, None]
    result = augment(batch, NOTHING, seed=3)
    torch.testing.assert_close(result.images_BCHW, batch.images_BCHW / 255, atol=1e-4, rtol=0)
    for name in ("sizes_B2", "originals_B2", "labels_BN", "valid_BN", "index_B"):
        assert torch.equal(getattr(result, name), getattr(batch, name)), name
    torch.testing.assert_close(result.boxes_BN4, batch.boxes_BN4, atol=1e-6, rtol=0)


def test_float_images_give_the_same_as_bytes(batch: Batch) -> None:
    some = Augment(scale=(0.4, 1.5), flip=0.5, colour=0.2, min_visible=0.2)  # bytes are rounded after resizing
    from_bytes = augment(batch, some, seed=1)
    batch.images_BCHW = batch.images_BCHW / 255
    torch.testing.assert_close(augment(batch, some, seed=1).images_BCHW, from_bytes.images_BCHW, atol=0.005, rtol=0)


@pytest.mark.usefixtures("way")
def test_flipped_twice_is_the_same(batch: Batch) -> None:
    batch.images_BCHW *= image_mask(batch.images_BCHW, batch.sizes_B2)[:, None]
    flip = Augment(flip=1.0)
    once = augment(batch, flip, seed=0)
    twice = augment(once, flip, seed=1)
    assert not torch.allclose(once.boxes_BN4, batch.boxes_BN4)
    torch.testing.assert_close(twice.images_BCHW, batch.images_BCHW / 255, atol=1e-4, rtol=0)
    torch.testing.assert_close(twice.boxes_BN4, batch.boxes_BN4, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("way")
def test_a_flip_mirrors_the_image_part(batch: Batch) -> None:
    result = augment(batch, Augment(flip=1.0), seed=0)
    for image, flipped, (height, width) in zip(batch.images_BCHW, result.images_BCHW, batch.sizes_B2, strict=True):
        part = image[:, :height, :width].flip(-1) / 255
        torch.testing.assert_close(flipped[:, :height, :width], part, atol=1e-4, rtol=0)


@settings(max_examples=40, deadline=None)
@given(min_visible=st.floats(0, 1), seed=st.integers(0, 100))
def test_boxes_are_dropped_by_what_remains_visible(min_visible: float, seed: int) -> None:
    boxes_BN4 = torch.rand(8, 12, 4, generator=torch.Generator().manual_seed(seed)) * 0.5
    boxes_BN4[..., 2:] += boxes_BN4[..., :2] + 0.02
    batch = painted([(0, 0, 9, 9)] * 8, [(SIDE, SIDE)] * 8)
    batch.boxes_BN4 = boxes_BN4.clamp(max=1)
    batch.labels_BN = torch.arange(96).view(8, 12)
    batch.valid_BN = torch.arange(12) < torch.arange(8)[:, None]
    zoom = Augment(scale=(1.7, 1.7), flip=0.0)
    every = augment(batch, Augment(scale=zoom.scale, min_visible=0.0), seed)
    some = augment(batch, Augment(scale=zoom.scale, min_visible=min_visible), seed)
    scale = SIDE / round(SIDE / 1.7)
    for b in range(8):
        kept = dict(zip(some.labels_BN[b][some.valid_BN[b]].tolist(), some.boxes_BN4[b], strict=False))
        for label, box in zip(every.labels_BN[b][every.valid_BN[b]].tolist(), every.boxes_BN4[b], strict=False):
            visible = area(box) / (area(batch.boxes_BN4.view(-1, 4)[label]) * scale**2)
            if abs(visible - min_visible) > 1e-4:
                assert (label in kept) == bool(visible > min_visible)
            assert label not in kept or torch.equal(kept[label], box)


def test_rows_that_remain_are_in_front_and_the_others_zero() -> None:
    batch = painted([(0, 0, 9, 9)], [(SIDE, SIDE)])
    batch.boxes_BN4 = torch.tensor([[[0.98, 0.98, 1, 1], [0.01, 0.01, 0.02, 0.02], [0.4, 0.4, 0.6, 0.6]]])
    batch.labels_BN, batch.valid_BN = torch.tensor([[4, 5, 6]]), torch.tensor([[True, True, True]])
    result = augment(batch, Augment(scale=(2.0, 2.0), min_visible=0.1), seed=5)
    count = int(result.valid_BN.sum())
    assert 1 <= count < 3  # a crop of half the width cannot hold both corners
    assert result.valid_BN[0].tolist() == [True] * count + [False] * (3 - count)
    assert 6 in result.labels_BN[0, :count]
    assert not result.boxes_BN4[0, count:].any()
    assert not result.labels_BN[0, count:].any()


def test_a_box_seen_whole_stays_at_full_visibility() -> None:
    batch = painted([(3, 5, 40, 31), (0, 0, SIDE, 50)], [(SIDE, SIDE), (50, SIDE)])
    for seed in range(20):
        assert augment(batch, Augment(scale=(0.31, 0.97), flip=0.5, min_visible=1.0), seed).valid_BN.all()


def test_the_seed_decides_and_every_image_has_its_own_draw() -> None:
    batch = painted([(10, 10, 50, 50)] * 6, [(SIDE, SIDE)] * 6)
    some = Augment(scale=(0.3, 2.0), flip=0.5, colour=0.4, min_visible=0.0)
    first, again, other = augment(batch, some, 7), augment(batch, some, 7), augment(batch, some, 8)
    for field in fields(Batch):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))
    assert not torch.equal(first.images_BCHW, other.images_BCHW)
    assert len({tuple(box) for box in first.boxes_BN4[:, 0].tolist()}) == 6


def test_views_stand_next_to_each_other(batch: Batch) -> None:
    result = augment(batch, Augment(scale=(0.5, 1.5), flip=0.5, views=3), seed=0)
    assert result.index_B.tolist() == [0, 0, 0, 1, 1, 1]
    assert result.images_BCHW.shape == (6, 3, 96, 96)
    assert result.originals_B2.tolist() == [[192, 192]] * 3 + [[128, 192]] * 3
    assert result.valid_BN.shape == (6, 3)
    assert len({tuple(box) for box in result.boxes_BN4[:3, 0].tolist()}) == 3


def test_images_without_objects(batch: Batch) -> None:
    batch.valid_BN = torch.zeros(2, 1, dtype=torch.bool)
    batch.boxes_BN4, batch.labels_BN = torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.int64)
    result = augment(batch, Augment(scale=(0.3, 2.0), flip=0.5, colour=0.5), seed=0)
    assert not result.valid_BN.any()
    assert not result.boxes_BN4.any()


def test_colours_stay_within_their_strength_and_keep_the_order() -> None:
    batch = painted([(0, 0, 48, 96)] * 40, [(SIDE, SIDE)] * 40)
    batch.images_BCHW = batch.images_BCHW // 3 + 60
    result = augment(batch, Augment(colour=0.3), seed=0).images_BCHW
    assert result.min() >= 0
    assert result.max() <= 1
    left, right = result[:, :, 50, 20], result[:, :, 50, 80]
    assert (left > right).all()  # contrast never turns over
    torch.testing.assert_close(left[:, 0], left[:, 1], atol=1e-5, rtol=0)  # grey stays grey
    ratio_B = left[:, 0] / (145 / 255)
    assert ratio_B.min() < 0.85
    assert ratio_B.max() > 1.15


def test_colour_matches_a_direct_computation() -> None:
    torch.manual_seed(0)
    batch = painted([(0, 0, 48, 96)], [(SIDE, SIDE)])
    batch.images_BCHW = torch.randint(90, 160, (1, 3, SIDE, SIDE), dtype=torch.uint8)
    result = augment(batch, Augment(colour=0.2), seed=11).images_BCHW[0]
    draws = torch.rand(1, 7, generator=torch.Generator().manual_seed(11))[0, 1:4]
    brightness, contrast, saturation = (1 + 0.2 * (2 * draws - 1)).tolist()
    image = batch.images_BCHW[0] / 255
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = (image * weights).sum(0)
    expected = grey + saturation * (image - grey)
    expected = brightness * (grey.mean() + contrast * (expected - grey.mean()))
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def antialiased(image_CHW: torch.Tensor, size: int) -> torch.Tensor:
    image = Image.fromarray(image_CHW.permute(1, 2, 0).numpy())
    resized = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(resized) / 255).permute(2, 0, 1).float()


@pytest.fixture
def noisy() -> Batch:
    batch = painted([(0, 0, 48, 96)], [(SIDE, SIDE)])
    noise = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch.images_BCHW = noise
    return batch


@pytest.mark.parametrize("scale", [0.3, 0.4, 0.75])
def test_the_cpu_shrinks_as_pillow_does(noisy: Batch, scale: float) -> None:
    size = round(SIDE * scale)
    result = augment(noisy, Augment(scale=(scale, scale)), 0).images_BCHW[0, :, :size, :size]
    torch.testing.assert_close(result, antialiased(noisy.images_BCHW[0], size), atol=1.5 / 255, rtol=0)


@pytest.mark.parametrize("scale", [0.3, 0.4])
def test_elsewhere_shrinking_is_closer_to_antialiased_than_plain_sampling(
    noisy: Batch, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_resize_each", module._sample_together)
    size = round(SIDE * scale)

    def error() -> float:
        result = augment(noisy, Augment(scale=(scale, scale)), 0).images_BCHW[0, :, :size, :size]
        return (result - antialiased(noisy.images_BCHW[0], size)).abs().mean().item()

    ours = error()
    monkeypatch.setattr(augment_plan, "HALVE_UNDER", 0.0)
    assert ours < 0.6 * error()


def test_both_ways_see_the_same(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smooth images, on which the two filters hardly differ."""
    smooth = torch.nn.functional.avg_pool2d(batch.images_BCHW.float(), 25, 1, 12)
    batch.images_BCHW = smooth.round().to(torch.uint8) * image_mask(smooth, batch.sizes_B2)[:, None]
    some = Augment(scale=(0.3, 2.0), flip=0.5, colour=0.3, min_visible=0.1, views=8)
    here = augment(batch, some, seed=0)
    monkeypatch.setattr(module, "_resize_each", module._sample_together)
    there = augment(batch, some, seed=0)
    assert (here.images_BCHW - there.images_BCHW).abs().mean() < 0.01
    assert torch.equal(here.boxes_BN4, there.boxes_BN4)


# The geometry of google-research/pix2seq, against what its code made of five images (commit eabd4e9)


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "golden" / "pix2seq_views.npz") as stored:
        return dict(stored)


def test_sizes_are_cut_and_rounded_as_the_official_ones(official):
    for *old, canvas_y, canvas_x, eval_y, eval_x, scale, jitter_y, jitter_x in official["size_table"].tolist():
        canvas = (int(canvas_y), int(canvas_x))
        assert fitted_size(int(old[0]), int(old[1]), canvas) == (eval_y, eval_x)
        jittered = official_size(torch.tensor([old]).long(), torch.tensor(canvas), torch.tensor([scale]))
        assert jittered[0].tolist() == [jitter_y, jitter_x]


@pytest.mark.parametrize("number", range(5))
def test_training_images_equal_the_official_ones(official, number):
    case = json.loads(str(official["cases"]))[number]
    h, w, c = np.ogrid[: case["in_size"][0], : case["in_size"][1], :3]
    image = torch.from_numpy(0.5 + 0.5 * np.sin(0.05 * h * (c + 1) + 0.07 * w)).float().permute(2, 0, 1)
    sizes, boxes = torch.tensor([case["in_size"]]), official["boxes"][~official["crowd"]][:, [1, 0, 3, 2]]
    valid = torch.ones(1, len(boxes), dtype=torch.bool)
    batch = Batch(image[None], sizes, sizes, torch.from_numpy(boxes)[None], valid.long(), valid, torch.tensor([0]))
    draws = (case["draw_scale"], case["draw_crop_fraction"], case["draw_flip_coin"] > 0.5)
    view = official_view(batch, tuple(case["target"]), *(torch.tensor([draw]) for draw in draws))
    assert view.sizes_B2[0].tolist() == case["unpadded"]
    seen = view.images_BCHW.where(image_mask(view.images_BCHW, view.sizes_B2)[:, None], 0.3)[0, :, 3::8, 3::8]
    np.testing.assert_allclose(seen.permute(1, 2, 0), official[f"image{number}"], rtol=0, atol=1e-6)
    left = view.boxes_BN4[view.valid_BN][:, [1, 0, 3, 2]]
    np.testing.assert_allclose(left, official[f"boxes{number}"], rtol=0, atol=1e-6)


def test_in_the_official_geometry_both_ways_see_the_same_and_crops_lie_on_the_diagonal(monkeypatch):
    torch.manual_seed(0)
    batch = painted([(10, 20, 60, 70)] * 24, [(96, 96)] * 24)
    batch.images_BCHW = torch.rand(24, 3, SIDE, SIDE)
    settings = replace(NOTHING, scale=(0.4, 2.0), flip=0.5, geometry="pix2seq")
    seen = augment(batch, settings, 3)
    monkeypatch.setattr(module, "_resize_whole", module._sample_together)
    other = augment(batch, settings, 3)
    torch.testing.assert_close(seen.images_BCHW, other.images_BCHW, rtol=0, atol=2e-4)
    plan = make_plan(batch, settings, 3)
    torch.testing.assert_close(plan.corner_B2[:, 0], plan.corner_B2[:, 1])
    assert (plan.corner_B2 > 0).any()
