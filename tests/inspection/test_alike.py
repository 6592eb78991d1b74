"""Near-duplicate images: copies are found, other images are not, and many images take seconds."""

import numpy as np
import pytest
from PIL import Image

from boxwright.inspection import alike

SIDE = 240


def picture(seed):
    """A colourful image of blobs and edges."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 256, (7, 9, 3), np.uint8)
    image = Image.fromarray(small).resize((SIDE * 4 // 3, SIDE), Image.Resampling.BICUBIC)
    for _ in range(5):
        x, y = draw.integers(0, SIDE - 40, 2).tolist()
        image.paste(tuple(draw.integers(0, 256, 3).tolist()), (x, y, x + 40, y + 30))
    return image


def shifted(image):
    return image.crop((3, 2, image.width, image.height))


CHANGES = {
    "recompressed": lambda image: image,  # saved as JPEG of quality 40, below
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "brighter": lambda image: image.point(lambda level: min(255, level + 20)),
    "another frame": shifted,
}


@pytest.fixture
def files(tmp_path):
    paths = []
    for seed in range(12):
        paths.append(tmp_path / f"{seed}.png")
        picture(seed).save(paths[-1])
    return paths


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(tmp_path, files, name):
    copy = tmp_path / "copy.jpg"
    CHANGES[name](picture(5)).save(copy, quality=40)
    found = alike.groups(alike.thumbnails([*files, copy], len(files) + 1))
    assert [group.tolist() for group in found] == [[5, 12]]


def test_images_without_contrast_or_content_are_in_no_group(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths[:2]:
        Image.new("RGB", (50, 50), "gray").save(path)
    paths[2].write_bytes(b"no image")
    assert alike.groups(alike.thumbnails(paths, len(paths))) == []
    assert alike.groups(np.zeros((0, alike.THUMBNAIL, alike.THUMBNAIL), np.uint8)) == []


def test_bands_find_what_comparing_all_pairs_finds():
    draw = np.random.default_rng(0)
    base = draw.integers(0, 2**63, 40, np.uint64)
    noisy = base.copy()
    for bit in draw.integers(0, 64, (alike.MOST_BITS, 40)):
        noisy ^= np.uint64(1) << bit.astype(np.uint64)
    hashes = np.concatenate([base, noisy, base[:5]])
    found = np.concatenate(list(alike._candidates(hashes)))
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= alike.MOST_BITS
    wanted = {(i, j) for i, j in np.argwhere(np.triu(near, 1)).tolist() if hashes[i] != hashes[j] and j < 80}
    unequal = {tuple(sorted(pair)) for pair in found.tolist() if hashes[pair[0]] != hashes[pair[1]]}
    assert unequal == wanted
    assert {tuple(sorted(pair)) for pair in found.tolist()} - unequal == {(i, 80 + i) for i in range(5)}


def test_one_pair_among_thousands_is_found():
    draw = np.random.default_rng(0)
    thumbnails = draw.integers(0, 256, (3_000, alike.THUMBNAIL, alike.THUMBNAIL), np.uint8)
    thumbnails[2500] = thumbnails[7]
    assert [group.tolist() for group in alike.groups(thumbnails)] == [[7, 2500]]


def test_many_equal_images_are_one_group():
    thumbnails = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 32, 32), np.uint8), 5_000, axis=0)
    (group,) = alike.groups(thumbnails)
    assert len(group) == 5_000
