"""Images beside each other: thresholds and ground truth, batches as the network gets them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from boxwright.data.records import Record
from boxwright.drawing import colour
from boxwright.types import Batch, Detections
from boxwright.visualization import images

NAMES = ("cat", "dog")


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), NAMES)


def count(picture: Image.Image, colour: str) -> int:
    """Pixels of exactly this colour."""
    return int((np.asarray(picture) == ImageColor.getrgb(colour)).all(-1).sum())


def test_truth_and_thresholds_side_by_side(paint: Callable[..., Path], tmp_path: Path) -> None:
    path = paint(tmp_path / "x.png", (400, 300), (50, 50, 150, 150))
    boxes = np.array([[50, 50, 150, 150], [200, 50, 300, 150]], float)
    record = Record(path, 400, 300, boxes, np.array([0, 1]), np.array([False, True]), 1, "x")
    truth = images.draw_annotated(record, NAMES)
    assert count(truth, colour(0)) > 500
    assert count(truth, colour(1)) == 0  # ignored: grey
    sheet = images.side_by_side(record, found((50, 50, 150, 150, 0.6, 0)), NAMES)
    width, height = sheet.width // 2, sheet.height // 2
    corners = [(0, 0), (width, 0), (0, height), (width, height)]
    quarters = [sheet.crop((x, y, x + width, y + height)) for x, y in corners]
    assert [count(quarter, colour(0)) > 300 for quarter in quarters] == [False, True, True, True]


def test_a_batch_as_the_network_sees_it(batch: Batch) -> None:
    sheet = images.show_batch(batch, NAMES)
    assert sheet.width > 2 * 500
    floats = images.show_batch(Batch(**{**batch.__dict__, "images_BCHW": batch.images_BCHW / 255}), NAMES)
    np.testing.assert_array_equal(np.asarray(floats), np.asarray(sheet))
    assert images.show_batch(batch, NAMES, most=1).width < sheet.width


def test_padding_is_hatched(batch: Batch) -> None:
    batch.valid_BN[:] = False
    picture = np.asarray(images._canvas(batch, 1, NAMES))
    grey = (picture.max(-1) == picture.min(-1)).mean(1)
    assert grey[int(len(grey) * 0.7) :].min() == 1.0  # 64 of 96 rows are image
    assert grey[: int(len(grey) * 0.6)].max() < 0.5
