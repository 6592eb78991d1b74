"""A file in, boxes out; errors of one line for anything else."""

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import boxwright
from boxwright.config import UserError
from boxwright.runtime import Detector
from boxwright.thresholds import Thresholds
from helpers.onnx_files import facts, white_boxes

SIZE, BOX = (256, 128), (64, 32, 192, 96)


def test_every_form_of_an_image_gives_the_same(detector: Detector, paint: Callable[..., Path], tmp_path: Path) -> None:
    path = paint(tmp_path / "x.png", SIZE, BOX)
    image = Image.open(path)
    forms = [path, str(path), image, image.convert("RGBA"), np.asarray(image)]
    for form in forms:
        found = detector.predict(form)
        np.testing.assert_array_equal(found.boxes_N4, [BOX])
        np.testing.assert_allclose(found.scores_N, [0.9])
        assert isinstance(found, boxwright.Detections)
        assert found.names == detector.names == ("box", "other")
    assert [len(found) for found in detector.predict(forms, threshold=0, batch_size=3)] == [2] * 5
    assert detector.predict([]) == []


def test_images_of_different_sizes_go_together(detector: Detector, paint: Callable[..., Path], tmp_path: Path) -> None:
    boxes = [(0, 0, 8 + i, 16) for i in range(7)]
    paths = [paint(tmp_path / f"{i}.png", (32, 32 + i % 2), box) for i, box in enumerate(boxes)]
    for found, box in zip(detector.predict(paths, batch_size=5), boxes, strict=True):
        np.testing.assert_array_equal(found.boxes_N4, [box])


def test_boxes_are_in_pixels_of_the_file_even_if_it_is_decoded_reduced(
    detector: Detector, paint: Callable[..., Path], tmp_path: Path
) -> None:
    path = paint(tmp_path / "large.jpg", (2001, 1001), (500, 250, 2001, 1001))
    assert detector.decode(path).image.size < (2001, 1001)
    found = detector.predict(path)
    np.testing.assert_allclose(found.boxes_N4, [[500, 250, 2001, 1001]], atol=8)
    assert found.boxes_N4[0, 2:].tolist() == [2001, 1001]


def test_exif_is_applied(detector: Detector, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    image.paste("white", (0, 0, 10, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    image.save(path := tmp_path / "turned.png", exif=exif)
    for form in (path, Image.open(path), Image.open(path).convert("RGB")):
        np.testing.assert_array_equal(detector.predict(form).boxes_N4, [[16, 0, 20, 10]])
    assert detector.decode(Image.open(path)).size == detector.decode(path).size == (20, 40)


def test_threshold_and_classes(detector: Detector, paint: Callable[..., Path], tmp_path: Path) -> None:
    path = paint(tmp_path / "x.png", SIZE, BOX)
    assert detector.predict(path, 0.2).labels_N.tolist() == [0, 1]
    assert detector.predict(path, 0.2, classes="other").labels_N.tolist() == [1]
    assert detector.predict(path, 0.2, classes=["box", 1]).labels_N.tolist() == [0, 1]
    assert len(detector.predict(path, threshold=0.95)) == 0
    assert len(detector.predict(paint(tmp_path / "none.png", SIZE, None), threshold=0)) == 0
    with pytest.raises(UserError, match="did you mean 'other'"):
        detector.predict(path, classes="othr")
    with pytest.raises(UserError, match="threshold"):
        detector.predict(path, threshold=1)


def test_the_stored_threshold_counts_unless_another_is_given(paint: Callable[..., Path], tmp_path: Path) -> None:
    path, card = paint(tmp_path / "x.png", SIZE, BOX), Thresholds(0.3, {"other": 0.2, "box": 0.95}, "x").to_card()
    detector = Detector(white_boxes(tmp_path / "w.onnx", facts(card=json.dumps(card))))
    assert detector.thresholds.of(detector.names) == [0.95, 0.2]
    assert detector.predict(path).labels_N.tolist() == [1]
    assert detector.predict(path, threshold=0.5).labels_N.tolist() == [0]
    [(_, found)] = detector.stream([path])
    assert found.labels_N.tolist() == [1]


def test_one_pixel_is_an_image(detector: Detector) -> None:
    np.testing.assert_array_equal(detector.predict(np.full((1, 1, 3), 255, np.uint8)).boxes_N4, [[0, 0, 1, 1]])


def test_the_seed_is_the_same_for_all_images(tmp_path: Path) -> None:
    path = white_boxes(tmp_path / "model.onnx", seeded=True)
    image = np.full((8, 8, 3), 255, np.uint8)
    for seed in (0, 7):
        found = Detector(path, "cpu", seed=seed).predict([image] * 3, 0, classes="other")
        np.testing.assert_allclose([one.scores_N.sum() for one in found], seed / 100)


def test_a_generator_in_a_generator_out(detector: Detector) -> None:
    taken = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            taken.append(1)
            yield np.full((8, 8, 3), 255, np.uint8)

    stream = detector.stream(endless(), batch_size=2)
    assert [next(stream)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    stream.close()
    assert len(taken) <= 5 + 2 * 2 + 2


def test_a_folder_a_glob_and_a_list_of_paths(detector: Detector, paint: Callable[..., Path], tmp_path: Path) -> None:
    paths = [paint(tmp_path / f"{i}.png", SIZE, BOX) for i in range(3)]
    for source in (tmp_path, str(tmp_path / "*.png"), paths):
        assert [path for path, _ in detector.stream(source, batch_size=2)] == paths
    (tmp_path / "1.png").write_bytes(b"")
    skipped: list[UserError] = []
    assert [found.number for found in detector.find(tmp_path, skipped=skipped)] == [0, 2]
    assert "1.png: cannot be read as an image: the file is empty." in str(skipped[0])


@pytest.mark.parametrize(
    ("metadata", "hint"),
    [
        ({}, "none that `boxwright export` wrote"),
        (facts(boxwright="2"), "format 2, and this boxwright reads up to 1; update boxwright"),
        (facts(names='"cat"'), "changed since"),
        (facts(names="[1]"), "changed since"),
        (facts(names="["), "changed since"),
        (facts(names='["cat", "cat"]'), "changed since .*: two of its classes have the same name"),
        (facts(image_size="wide"), "changed since"),
        (facts(boxwright="one"), "changed since"),
        ({key: value for key, value in facts().items() if key != "card"}, "changed since"),
    ],
)
def test_a_file_that_is_no_detector(tmp_path: Path, metadata: dict[str, str], hint: str) -> None:
    path = white_boxes(tmp_path / "model.onnx", metadata)
    with pytest.raises(UserError, match=hint):
        Detector(path)


def test_a_file_that_cannot_be_read(onnx_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = onnx_file.read_bytes()
    for name, content in {"empty": b"", "cut": whole[:-200], "half": whole[:700], "text": b"no model"}.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}\.onnx is") as error:
            Detector(path)
        assert "\n" not in str(error.value)
    for nowhere in (tmp_path / "no.onnx", tmp_path):
        with pytest.raises(UserError, match="there is no file"):
            Detector(nowhere)
    with pytest.raises(UserError, match="on auto, cpu or cuda, not 'mps'"):
        Detector(onnx_file, "mps")
    assert capfd.readouterr() == ("", "")


def test_a_file_of_a_newer_opset(onnx_file: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_file)
    model.opset_import[0].version = 99
    onnx.save_model(model, tmp_path / "newer.onnx")
    with pytest.raises(UserError, match="newer than what runs it"):
        Detector(tmp_path / "newer.onnx")


def test_another_onnx_file_with_our_facts(tmp_path: Path) -> None:
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]> f (float[1] x) => (float[1] boxes) '
                                    "{ boxes = Neg (x) }")  # fmt: skip
    onnx.helper.set_model_props(model, facts())
    onnx.save_model(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="changed since"):
        Detector(tmp_path / "model.onnx")


def test_the_verb_takes_it(onnx_file: Path, paint: Callable[..., Path], tmp_path: Path) -> None:
    for i in range(3):
        paint(tmp_path / f"shots/{i}.png", SIZE, BOX)
    summary = boxwright.predict(onnx_file, tmp_path / "shots", tmp_path / "out", threshold=0.2, classes="box")
    assert (summary.images, summary.objects, summary.exit_code) == (3, {"box": 3}, 0)
    assert len(list((tmp_path / "out/overlays").iterdir())) == 3


def test_a_file_that_does_not_write_cannot_be_watched(onnx_file: Path) -> None:
    detector = Detector(onnx_file)
    assert not detector.generates_tokens
    with pytest.raises(UserError, match="finds all objects at once"):
        detector.stream_tokens(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("arguments", [{"given": [("box", (0, 0, 1, 1))]}, {"objects": 3}])
def test_given_objects_and_their_number_are_refused(detector: Detector, arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"only a sequence detector .* and this is a dense; export a pix2"):
        detector.predict(np.zeros((8, 8, 3), np.uint8), **arguments)


def test_large_files_wait_reduced_whatever_their_format(
    detector: Detector, paint: Callable[..., Path], tmp_path: Path
) -> None:
    path = paint(tmp_path / "large.png", (900, 700), (90, 70, 450, 350))
    ready = detector.decode(path)
    assert (ready.image.size, ready.size) == ((225, 175), (900, 700))
    np.testing.assert_allclose(detector.predict(path).boxes_N4, [[90, 70, 450, 350]], atol=4)
    assert detector.decode(Image.open(path)).image.size == (225, 175)


def test_nothing_is_decoded_of_a_bomb(detector: Detector, tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data)
    with pytest.raises(UserError, match=r"bomb\.png: .* 20000 x 20000 pixels, and 268,435,456 are the limit"):
        detector.predict(tmp_path / "bomb.png")


def test_fewer_names_than_labels(paint: Callable[..., Path], tmp_path: Path) -> None:
    short = Detector(white_boxes(tmp_path / "short.onnx", facts(names='["box"]')))
    path = paint(tmp_path / "x.png", SIZE, BOX)
    assert len(short.predict(path)) == 1
    with pytest.raises(UserError, match=r"short\.onnx was changed since .* has 1 names, and finds class 1"):
        short.predict(path, threshold=0.1)


def test_what_is_given_in_a_wrong_form(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"is a folder; `stream` goes through"):
        detector.predict(tmp_path)
    with pytest.raises(UserError, match=r"threshold must be a number .*, not '0.5'"):
        detector.predict(np.zeros((8, 8, 3), np.uint8), threshold="0.5")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a PIL image or an array, not"):
        detector.predict(7)  # type: ignore[call-overload]
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg")
    assert len(detector.predict("~/x.jpg")) == 0


@pytest.mark.parametrize(("said", "threads", "expected"), [("3", 0, 3), ("3", 1, 1), ("", 0, 0), ("4,2", 0, 0)])
def test_it_takes_as_many_threads_as_job_schedulers_say(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch, said: str, threads: int, expected: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    session = Detector(onnx_file, "cpu", threads=threads)._session
    assert session.get_session_options().intra_op_num_threads == expected
