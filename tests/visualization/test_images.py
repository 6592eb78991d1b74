"""Pictures say what they should, at any size, and charts survive any table."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from boxwright.data.records import Record
from boxwright.types import Batch, Detections
from boxwright.visualization import charts, images
from boxwright.visualization.boxes import Mark, _label, _touch, font

NAMES = ("cat", "dog")


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), NAMES)


def count(picture: Image.Image, colour: str) -> int:
    """Pixels of exactly this colour."""
    return int((np.asarray(picture) == ImageColor.getrgb(colour)).all(-1).sum())


def test_draw_keeps_to_the_threshold_and_leaves_the_image_alone() -> None:
    image = Image.new("RGB", (640, 480))
    detections = found((50, 60, 200, 300, 0.9, 0), (300, 100, 500, 400, 0.4, 1))
    picture = images.draw(image, detections, threshold=0.5)
    assert picture.size == image.size
    assert count(picture, images.colour(0)) > 1000
    assert count(picture, images.colour(1)) == 0
    assert count(images.draw(image, detections), images.colour(1)) > 1000
    assert np.asarray(image).max() == 0


def test_the_box_is_where_it_should_be() -> None:
    picture = np.asarray(images.draw(Image.new("RGB", (640, 480)), found((100, 200, 300, 400, 0.9, 0))))
    blue = (picture == ImageColor.getrgb(images.colour(0))).all(-1)
    rows, columns = np.nonzero(blue)
    assert (columns.min(), columns.max(), rows.max()) == (100, 300, 400)
    assert blue[200, 100:301].sum() > 190


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (40, 30), (640, 480), (4000, 300), (3000, 2000)])
def test_any_size_can_be_labelled(size: tuple[int, int]) -> None:
    width, height = size
    picture = images.draw(Image.new("RGB", size), found((0, 0, width, height, 0.9, 0), (-50, -50, 9e9, 9e9, 0.5, 1)))
    assert max(picture.size) >= 640
    assert picture.width * height == picture.height * width


def test_labels_never_cover_each_other() -> None:
    spots: list = []
    letters = font(14)
    canvas = Image.new("RGB", (640, 480))
    pen = images.ImageDraw.Draw(canvas)
    for i in range(30):
        _label(pen, Mark(np.zeros(4), f"cat 0.{i}", "red"), (100 + i, 100, 300, 300), letters, canvas, spots)
    assert 4 <= len(spots) < 30
    assert not any(_touch(a, b) for i, a in enumerate(spots) for b in spots[:i])


def test_odd_boxes_are_drawn_somewhere() -> None:
    images.draw(Image.new("RGB", (100, 100)), found((np.nan, 0, 50, 50, 0.9, 0), (80, 80, 20, 20, 0.8, 1)))


def test_truth_and_thresholds_side_by_side(paint: Callable[..., Path], tmp_path: Path) -> None:
    path = paint(tmp_path / "x.png", (400, 300), (50, 50, 150, 150))
    boxes = np.array([[50, 50, 150, 150], [200, 50, 300, 150]], float)
    record = Record(path, 400, 300, boxes, np.array([0, 1]), np.array([False, True]), 1, "x")
    truth = images.draw_truth(record, NAMES)
    assert count(truth, images.colour(0)) > 500
    assert count(truth, images.colour(1)) == 0  # ignored: grey
    sheet = images.side_by_side(record, found((50, 50, 150, 150, 0.6, 0)), NAMES)
    width, height = sheet.width // 2, sheet.height // 2
    corners = [(0, 0), (width, 0), (0, height), (width, height)]
    quarters = [sheet.crop((x, y, x + width, y + height)) for x, y in corners]
    assert [count(quarter, images.colour(0)) > 300 for quarter in quarters] == [False, True, True, True]


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


def is_picture(path: Path) -> bool:
    with Image.open(path) as picture:
        return picture.format == "PNG" and picture.width > 400 and np.asarray(picture).std() > 1


@pytest.mark.parametrize(
    "table",
    [
        "",
        "step,epoch,lr,loss,val_ap,val_ap50\n",
        "step,epoch,lr,loss,loss_l1,val_ap,val_ap50\n1,0.5,0.1,3.0,2.0,,\n2,1.0,0.1,2.0,1.0,0.1,0.3\n",
        "step,epoch,lr,loss,val_ap,val_ap50\n1,0.5,,nan,,\n2,1.0,0.1,inf,-1.0,-1.0\n3,1.5,0.1",
        "step,epoch,lr,loss,loss_l1_10,loss_l1_2,loss_x,val_ap,val_ap50,val_ap_large,val_loss,val_loss_l1_2\n"
        "1,0.5,0.1,3.0,2.0,1,1,,,,,\n2,1.0,0.1,2.0,1.0,1,1,0.1,0.3,0.2,4.0,2.5\n",
        "step,epoch,lr,loss,loss_a\n" + "".join(f"{i},{i / 9},0.1,{9 - i / 99},1\n" for i in range(200)),
    ],
)
def test_curves_of_any_table(tmp_path: Path, table: str) -> None:
    (tmp_path / "metrics.csv").write_text(table)
    charts.curves(tmp_path / "metrics.csv", tmp_path / "curves")
    assert is_picture(tmp_path / "curves")


def test_terms_are_told_from_their_layers() -> None:
    names = ["step", "loss", "loss_l1_1", "loss_l1_2", "loss_noisy_l1_1", "loss_tokens", "val_loss_l1_1"]
    assert charts._terms(dict.fromkeys(names, np.zeros(1))) == {
        "loss_l1": ["loss_l1_1", "loss_l1_2"], "loss_noisy_l1": ["loss_noisy_l1_1"], "loss_tokens": ["loss_tokens"],
    }  # fmt: skip
    assert charts._terms({"loss": np.zeros(1), "loss_tokens": np.zeros(1)}) == {}


def test_the_running_mean_of_a_constant_is_the_constant() -> None:
    np.testing.assert_allclose(charts._running_mean(np.full(100, 3.0)), 3.0)
    values = np.arange(100.0)
    np.testing.assert_allclose(charts._running_mean(values)[2:-2], values[2:-2])


@pytest.mark.parametrize("n_classes", [1, 3, 30])
def test_charts_for_any_number_of_classes(tmp_path: Path, n_classes: int) -> None:
    names = [f"class {k}" for k in range(n_classes)]
    precision_TRK = np.linspace(1, 0, 101)[None, :, None].repeat(10, 0).repeat(n_classes, 2)
    precision_TRK[:, :, 0] = -1
    charts.precision_recall(np.linspace(0, 1, 101), precision_TRK, names, tmp_path / "pr.png")
    matrix = np.arange((n_classes + 1) ** 2).reshape(n_classes + 1, -1)
    charts.confusion(matrix, names, tmp_path / "confusion.png")
    assert is_picture(tmp_path / "pr.png")
    assert is_picture(tmp_path / "confusion.png")


def test_colours_come_round_after_twenty() -> None:
    assert len({images.colour(k) for k in range(20)}) == 20
    assert images.colour(3) == images.colour(23)


def test_a_comparison_is_drawn_with_a_dot_for_each(tmp_path):
    curves = {"a": [(1.0, 0.1), (2.0, 0.2)], "b": [(1.5, 0.0)]}
    charts.compared(curves, {"a": (12.0, 0.2), "b": (400.0, 0.0)}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1495, 598)
