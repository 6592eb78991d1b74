"""One image or a list, in any form: the same boxes, in pixels of the original."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boxwright.config import UserError
from boxwright.inference.predictor import Predictor
from boxwright.thresholds import Thresholds
from boxwright.types import Detector

SIZE, BOX = (256, 128), (64, 32, 192, 96)


@pytest.fixture
def predictor(white_boxes: Detector) -> Predictor:
    return Predictor(white_boxes)


def test_every_form_of_an_image_gives_the_same(
    predictor: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    path = paint(tmp_path / "x.png", SIZE, BOX)
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    data = path.read_bytes()
    forms = [
        path,
        str(path),
        data,
        bytearray(data),
        io.BytesIO(data),
        path.open("rb"),
        image,
        image.convert("RGBA"),
        array,
        tensor,
        tensor / 255,
        (tensor / 255).half(),
    ]
    for form in forms:
        found = predictor.predict(form)
        np.testing.assert_allclose(found.boxes_N4, [BOX], atol=4.1)  # one pixel of the 64 px canvas is four here
        assert found.names == ("box", "other")
        assert found.plot(image).size == found.plot().size == (768, 384)
    forms[4:6] = io.BytesIO(data), path.open("rb")
    together = predictor.predict(forms, batch_size=3)
    assert len(together) == len(forms)
    for found in together:
        np.testing.assert_array_equal(found.boxes_N4, predictor.predict(path).boxes_N4)


def test_bytes_and_urls_that_are_no_image(predictor: Predictor) -> None:
    with pytest.raises(UserError, match="the bytes given: cannot be read as an image: not an image"):
        predictor.predict(b"no image")
    with pytest.raises(UserError, match=r"the bytes given: .*the file is empty"):
        predictor.predict(b"")
    with pytest.raises(UserError, match="must be opened for reading bytes"):
        predictor.predict(io.StringIO("text"))
    with pytest.raises(UserError, match=r"https://host/a\.jpg is a URL, which is not fetched here"):
        predictor.predict("https://host/a.jpg")


def test_boxes_are_in_pixels_of_the_file_even_if_it_is_decoded_reduced(
    predictor: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    path = paint(tmp_path / "large.jpg", (2000, 1000), (500, 250, 1500, 750))
    np.testing.assert_allclose(predictor.predict(path).boxes_N4, [[500, 250, 1500, 750]], atol=32)


@pytest.mark.parametrize("mode", ["I;16", "LA", "P", "CMYK", "F"])
def test_an_opened_image_of_any_mode_is_read_as_its_file_is(predictor: Predictor, tmp_path: Path, mode: str) -> None:
    array = np.zeros((32, 64), np.uint16)
    array[8:16, 16:32] = 65535
    image = Image.fromarray(array)
    image = image if mode == "I;16" else Image.fromarray((array // 257).astype(np.uint8)).convert(mode)
    image.save(path := tmp_path / "x.tif")
    found = predictor.predict(image)
    np.testing.assert_array_equal(found.boxes_N4, [[16, 8, 32, 16]])
    np.testing.assert_array_equal(found.boxes_N4, predictor.predict(path).boxes_N4)


def test_the_stored_threshold_counts_unless_another_is_given(
    predictor: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    path = paint(tmp_path / "x.png", SIZE, BOX)
    for overall, classes, count in ((0.95, {}, 0), (0.95, {"box": 0.85}, 1), (0.5, {"box": 0.91}, 0)):
        predictor.detector.card = Thresholds(overall, classes, "x").to_card()
        assert len(predictor.predict(path)) == count
        assert [len(found) for found in predictor.predict([path, path])] == [count] * 2
        assert [len(found) for _, found in predictor.stream(str(path))] == [count]
        assert len(predictor.predict(path, threshold=0.89)) == 1
        assert len(predictor.predict(path, threshold=0.92)) == 0
    predictor.detector.card = {"thresholds": "high"}
    assert len(predictor.predict(path, threshold=0.5)) == 1
    with pytest.raises(UserError, match="score thresholds in the model card"):
        predictor.predict(path)


def test_threshold(predictor: Predictor, paint: Callable[..., Path], tmp_path: Path) -> None:
    path = paint(tmp_path / "x.png", SIZE, BOX)
    assert len(predictor.predict(path, threshold=0.89)) == 1
    assert len(predictor.predict(path, threshold=0.95)) == 0
    assert len(predictor.predict(paint(tmp_path / "none.png", SIZE, None), threshold=0)) == 0
    assert predictor.predict([]) == []
    with pytest.raises(UserError, match="threshold"):
        predictor.predict(path, threshold=1.5)
    with pytest.raises(UserError, match="batch size must be at least 1"):
        predictor.predict([path], batch_size=0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), "must be"),
        (np.zeros((8, 8, 3), np.float32), "uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), "as a list"),
        (torch.zeros(8, 8, 3), r"\(3, H, W\)"),
        (torch.zeros(1, 3, 8, 8), "as a list"),
        (torch.full((3, 8, 8), 200.0), "divide by 255"),
        (torch.full((3, 8, 8), torch.nan), "divide by 255"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "uint8"),
        (np.zeros((0, 8, 3), np.uint8), "must have pixels, not 8 x 0"),
        (Image.new("RGB", (5, 0)), "must have pixels"),
        (7, "a PIL image, an array or a tensor"),
        ("nowhere.jpg", "missing"),
    ],
)
def test_what_is_no_image(predictor: Predictor, image: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predictor.predict(image)  # type: ignore[call-overload]


def test_stream_gives_each_image_in_order(predictor: Predictor, paint: Callable[..., Path], tmp_path: Path) -> None:
    paths = [paint(tmp_path / f"{i:02}.png", SIZE, (0, 0, 16 + 8 * i, 64)) for i in range(20)]
    streamed = list(predictor.stream(tmp_path, batch_size=3))
    assert [path for path, _ in streamed] == paths
    widths = [found.boxes_N4[0, 2] for _, found in streamed]
    np.testing.assert_allclose(widths, [16 + 8 * i for i in range(20)], atol=4.1)


def test_stream_passes_over_what_cannot_be_read_or_stops(
    predictor: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    for i in range(7):
        paint(tmp_path / f"{i}.png", SIZE, BOX)
    (tmp_path / "3.png").write_bytes(b"no image")
    skipped: list[UserError] = []
    assert [path.stem for path, _ in predictor.stream(tmp_path, 2, skipped=skipped)] == list("012456")
    assert [str(tmp_path / "3.png") in str(error) for error in skipped] == [True]
    with pytest.raises(UserError, match=r"3\.png"):
        list(predictor.stream(tmp_path, 2))


def test_stream_decodes_no_further_than_it_must(
    predictor: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    path = paint(tmp_path / "x.png", SIZE, BOX)
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield path

    stream = predictor.stream(endless(), batch_size=2)
    for _ in range(4):
        next(stream)
    stream.close()
    assert len(taken) <= 4 + 2 * 2 + 2
