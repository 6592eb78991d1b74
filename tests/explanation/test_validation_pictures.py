"""Pictures of each validation: always of the same images, with an explanation where there is one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxwright.data import cache
from boxwright.data.records import Record
from boxwright.explanation.validation_pictures import sequence_picture, write_validation_pictures
from boxwright.models.pix2seq import Pix2Seq
from boxwright.types import Detections, Detector
from helpers.query_detectors import small_query_detector


@pytest.fixture
def images(paint: Callable[..., Path], tmp_path: Path) -> tuple[cache.Cache, list[Record]]:
    sizes = [(120, 80), (60, 90), (64, 64), (30, 200), (90, 90)]
    paths = [paint(tmp_path / f"{n}.png", size, (5, 5, 25, 25)) for n, size in enumerate(sizes)]
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), 1, "")
    records = [Record(path, *size, *nothing) for path, size in zip(paths, sizes, strict=True)]
    return cache.build(records, 96, folder=tmp_path / "cache", quiet=True), records


def nothing_found(images: int) -> list[Detections]:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ("cat", "dog"))
    return [nothing] * images


def test_files_that_were_moved_away_are_not_missed(
    white_boxes: Detector, images: tuple[cache.Cache, list[Record]], tmp_path: Path
) -> None:
    for record in images[1]:
        record.path.unlink()
    write_validation_pictures(white_boxes, *images, nothing_found(5), tmp_path)
    assert len(list((tmp_path / "validation").iterdir())) == 3


def test_three_images_spread_over_the_split(
    pix2seq: Pix2Seq, images: tuple[cache.Cache, list[Record]], tmp_path: Path
) -> None:
    for _ in range(2):
        write_validation_pictures(pix2seq.train(), *images, nothing_found(5), tmp_path)
        assert pix2seq.training
        for folder in ("explain", "validation"):
            assert sorted(p.name for p in (tmp_path / folder).iterdir()) == [
                "00001-0.jpg",
                "00003-2.jpg",
                "00005-4.jpg",
            ]
    with Image.open(tmp_path / "explain" / "00001-0.jpg") as picture:
        assert picture.width > 4 * 320
    with Image.open(tmp_path / "validation" / "00001-0.jpg") as picture:
        assert picture.width > 2 * 640


@pytest.mark.parametrize("kind", ["copying", "copying_patches"])
def test_a_copied_sequence_is_explained_by_its_sources(
    kind: str, images: tuple[cache.Cache, list[Record]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write_validation_pictures(request.getfixturevalue(kind), *images, nothing_found(5), tmp_path)
    assert len(list((tmp_path / "explain").iterdir())) == 3


@pytest.mark.parametrize("kind", ["detr", "deformable"])
def test_queries_leave_their_attention(kind: str, images: tuple[cache.Cache, list[Record]], tmp_path: Path) -> None:
    detector = small_query_detector(kind).train()
    write_validation_pictures(detector, *images, nothing_found(5), tmp_path)
    assert detector.training
    assert sorted(p.name for p in (tmp_path / "explain").iterdir()) == ["00001-0.jpg", "00003-2.jpg", "00005-4.jpg"]
    with Image.open(tmp_path / "explain" / "00001-0.jpg") as picture:
        assert picture.width > 4 * 320


def test_a_detector_that_cannot_be_explained_leaves_its_detections(
    white_boxes: Detector, images: tuple[cache.Cache, list[Record]], tmp_path: Path
) -> None:
    write_validation_pictures(white_boxes, *images, nothing_found(5), tmp_path)
    assert not (tmp_path / "explain").exists()
    assert len(list((tmp_path / "validation").iterdir())) == 3


def test_an_empty_sequence_has_a_picture() -> None:
    class Nothing:
        def __len__(self) -> int:
            return 0

    assert sequence_picture(Image.new("RGB", (320, 200)), Nothing()).size[0] > 320  # type: ignore[arg-type]
