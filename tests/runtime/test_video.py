"""A video is a stream of frames."""

from pathlib import Path

import numpy as np
import pytest

import boxwright
from boxwright.config import UserError
from boxwright.runtime import Detector

av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds in which a white box moves to the right, by 8 pixels a frame."""
    path = tmp_path_factory.mktemp("video") / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 160, 64, "yuvj420p"
        for i in range(10):
            frame_HW3 = np.zeros((64, 160, 3), np.uint8)
            frame_HW3[16:48, 8 * i : 8 * i + 32] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HW3)))
        container.mux(stream.encode(None))
    return path


def test_each_frame_in_order(detector: Detector, video: Path) -> None:
    found = list(detector.find(video, batch_size=4))
    assert [(one.path, one.number, one.size) for one in found] == [(video, i, (160, 64)) for i in range(10)]
    np.testing.assert_allclose([one.seconds for one in found], np.arange(10) / 5)
    boxes = [one.detections.boxes_N4[0] for one in found]
    np.testing.assert_allclose(boxes, [[8 * i, 16, 8 * i + 32, 48] for i in range(10)], atol=1)
    assert [number for number, _ in detector.stream(str(video))] == list(range(10))


def test_the_verb_writes_frames(onnx_file: Path, video: Path, tmp_path: Path) -> None:
    summary = boxwright.predict(onnx_file, video, tmp_path)
    assert (summary.images, summary.objects) == (10, {"box": 10})
    names = [f"clip/{i:06}.jpg" for i in range(10)]
    assert sorted(p.relative_to(tmp_path / "overlays").as_posix() for p in tmp_path.rglob("*.jpg")) == names
    assert [line.split(",")[0] for line in (tmp_path / "predictions.csv").read_text().splitlines()[1:]] == names


def test_what_is_no_video(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"x\.mp4: cannot be read as a video"):
        list(detector.stream(tmp_path / "x.mp4"))
    with pytest.raises(UserError, match="there is no file"):
        list(detector.stream(tmp_path / "y.mp4"))
