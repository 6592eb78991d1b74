"""Every image is seen, a resumed epoch is the same epoch, and the threads go away."""

import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import pytest
import torch

from boxwright.config import Augment, UserError
from boxwright.data.cache import Cache, build
from boxwright.data.loader import eval_batches, prefetch, steps_per_epoch, train_batches
from boxwright.types import Batch
from helpers import image_files as samples

SOME = Augment(scale=(0.5, 1.5), flip=0.5, colour=0.3, min_visible=0.2, views=1)
MIXED = replace(SOME, mosaic=0.8, mixup=0.5, copy_blend=0.5, mixed_until=0.8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("images")
    return build(samples.records(folder, 10), 32, mode="pixels", folder=folder / "cache", quiet=True)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch))


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("boxwright-prefetch")]


def indices(batches: Iterator[Batch]) -> list[list[int]]:
    return [batch.index_B.tolist() for batch in batches]


def flatten(rows: list) -> list:
    return list(chain.from_iterable(rows))


def test_an_epoch_sees_every_image_and_fills_the_last_batch(cache: Cache) -> None:
    seen = indices(train_batches(cache, 4, SOME, seed=0, epoch=0))
    assert [len(row) for row in seen] == [4, 4, 4]
    flat = flatten(seen)
    assert sorted(flat[:10]) == list(range(10))
    assert flat[10:] == flat[:2]  # wrapped around


def test_more_in_a_batch_than_there_are_images(cache: Cache) -> None:
    (only,) = indices(train_batches(cache, 23, SOME, seed=0, epoch=0))
    assert len(only) == 23
    assert only[:10] == only[10:20]


def test_order_depends_on_seed_and_epoch_alone(cache: Cache) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return indices(train_batches(cache, 5, SOME, seed=seed, epoch=epoch))

    assert order(1, 2) == order(1, 2)
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4


@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("settings", [SOME, MIXED])
def test_resumed_at_any_step_the_batches_are_the_same(cache: Cache, settings: Augment, first: int) -> None:
    whole = list(train_batches(cache, 3, settings, seed=4, epoch=6, epochs=10))
    resumed = list(train_batches(cache, 3, settings, seed=4, epoch=6, epochs=10, first=first))
    assert len(resumed) == len(whole) - first
    assert all(same(a, b) for a, b in zip(whole[first:], resumed, strict=True))


def test_images_are_no_longer_mixed_in_the_last_part_of_a_run(cache: Cache) -> None:
    def batches(settings: Augment, epoch: int) -> list[Batch]:
        return list(train_batches(cache, 4, settings, seed=0, epoch=epoch, epochs=2))

    half = replace(MIXED, mixed_until=0.5)
    assert not any(same(a, b) for a, b in zip(batches(half, 0), batches(SOME, 0), strict=True))
    assert all(same(a, b) for a, b in zip(batches(half, 1), batches(SOME, 1), strict=True))
    last = [same(a, b) for a, b in zip(batches(MIXED, 1), batches(SOME, 1), strict=True)]
    assert last == [False, False, True]  # five of six steps in all, over 0.8 of them


def test_augmentation_differs_from_epoch_to_epoch(cache: Cache) -> None:
    def first_image(epoch: int) -> torch.Tensor:
        batches = train_batches(cache, 10, SOME, seed=0, epoch=epoch)
        (batch,) = batches
        return batch.images_BCHW[batch.index_B.tolist().index(0)]

    assert not torch.equal(first_image(0), first_image(1))


def test_processes_share_an_epoch(cache: Cache) -> None:
    ranks = [indices(train_batches(cache, 2, SOME, seed=0, epoch=0, rank=rank, world=2)) for rank in range(2)]
    assert [len(rows) for rows in ranks] == [3, 3]
    assert set(flatten(ranks[0] + ranks[1])) == set(range(10))
    alone = indices(train_batches(cache, 4, SOME, seed=0, epoch=0))
    assert [a + b for a, b in zip(*ranks, strict=True)] == alone


def test_views_count_as_images_of_the_batch(cache: Cache) -> None:
    twice = Augment(scale=(0.5, 1.5), views=2)
    seen = indices(train_batches(cache, 4, twice, seed=0, epoch=0))
    assert len(seen) == steps_per_epoch(10, 4, views=2) == 5
    assert all(len(row) == 4 and row[0] == row[1] and row[2] == row[3] for row in seen)
    assert set(flatten(seen)) == set(range(10))


def test_steps_per_epoch() -> None:
    assert steps_per_epoch(10, 4) == 3
    assert steps_per_epoch(10, 5) == 2
    assert steps_per_epoch(10, 4, world=2) == 2
    assert steps_per_epoch(1, 16) == 1
    assert steps_per_epoch(10, 6, views=3) == 5


def test_evaluation_goes_in_order_once(cache: Cache) -> None:
    batches = list(eval_batches(cache, 4))
    assert [batch.index_B.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches[0].images_BCHW.dtype == torch.uint8
    ranks = [indices(eval_batches(cache, 4, rank=rank, world=3)) for rank in range(3)]
    assert sorted(flatten(flatten(ranks))) == list(range(10))
    assert indices(eval_batches(cache, 4, rank=11, world=12)) == []


@pytest.mark.parametrize(
    ("settings", "error"),
    [(Augment(scale=(0.0, 1.0)), "scale"), (Augment(scale=(2.0, 1.0)), "scale"), (Augment(flip=1.5), "flip"),
     (Augment(colour=-0.1), "colour"), (Augment(min_visible=2.0), "min_visible"), (Augment(views=0), "views"),
     (Augment(views=3), "multiple of augment.views"), (Augment(mosaic=1.5), "mosaic"), (Augment(mixup=-1), "mixup"),
     (Augment(copy_blend=2.0), "copy_blend"), (Augment(mixed_until=1.1), "mixed_until")],
)  # fmt: skip
def test_settings_outside_their_range_are_refused_at_once(cache: Cache, settings: Augment, error: str) -> None:
    with pytest.raises(UserError, match=error):
        train_batches(cache, 4, settings, seed=0, epoch=0)


def test_threads_end_with_the_iterator(cache: Cache) -> None:
    batches = train_batches(cache, 2, SOME, seed=0, epoch=0)
    next(batches)
    assert helpers()
    batches.close()
    for thread in helpers():
        thread.join(30)
    assert not helpers()


def test_each_thread_computes_on_one_core_and_others_keep_theirs() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        counts = prefetch(lambda _: (torch.ones(200_000).sin_(), torch.get_num_threads())[1], range(6))
        assert list(counts) == [1] * 6
        assert torch.get_num_threads() == 3
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [3]
    finally:
        torch.set_num_threads(before)


def test_jpeg_caches_are_read_by_the_same_loader(tmp_path: Path) -> None:
    jpeg = build(samples.records(tmp_path, 6), 32, mode="jpeg", folder=tmp_path / "cache", quiet=True)
    assert len(list(train_batches(jpeg, 4, SOME, seed=0, epoch=0))) == 2
