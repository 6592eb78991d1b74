"""A video is a stream of frames."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import boxwright
from boxwright.config import UserError
from boxwright.runtime import Detector

av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds in which a white box moves to the right, by 8 pixels a frame."""
    return record(tmp_path_factory.mktemp("video") / "clip.avi", 160, 64, 10)


def record(path: Path, width: int, height: int, frames: int) -> Path:
    """A white box that moves to the right, five frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        for i in range(frames):
            frame_HW3 = np.zeros((height, width, 3), np.uint8)
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


@pytest.mark.parametrize("name", ["clip.avi", "clip.mkv"])
def test_a_cut_video_is_read_as_far_as_it_goes(
    detector: Detector, onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    whole = record(tmp_path / name, 160, 64, 20).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    skipped: list[UserError] = []
    found = list(detector.find(tmp_path / name, 4, skipped=skipped))
    assert 4 < len(found) < 15
    assert [one.number for one in found] == list(range(len(found)))
    assert [f"{name}: " in str(error) for error in skipped] == [True]
    with pytest.raises(UserError, match=r"cut short|damaged"):
        list(detector.stream(tmp_path / name))
    summary = boxwright.predict(onnx_file, tmp_path / name, tmp_path / "out")
    assert (summary.images, summary.exit_code) == (len(found), 1)
    assert "the video could not be read to its end:" in capsys.readouterr().out


def test_a_video_without_any_frame_is_an_error_and_leaves_no_folder(onnx_file: Path, tmp_path: Path) -> None:
    whole = record(tmp_path / "clip.mkv", 160, 64, 20).read_bytes()
    (tmp_path / "clip.mkv").write_bytes(whole[:700])
    with pytest.raises(UserError, match="cannot be read as a video"):
        boxwright.predict(onnx_file, tmp_path / "clip.mkv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_what_reads_videos_no_folder_is_left(
    onnx_file: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="reading a video needs av"):
        boxwright.predict(onnx_file, video, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_large_frames_are_computed_reduced_and_drawn_whole(onnx_file: Path, tmp_path: Path) -> None:
    path = record(tmp_path / "large.avi", 800, 480, 2)
    found = next(iter(Detector(onnx_file).find(path)))
    assert (found.image.size, found.size) == ((800, 480), (800, 480))
    np.testing.assert_allclose(found.detections.boxes_N4, [[0, 16, 32, 48]], atol=4)
    boxwright.predict(onnx_file, path, tmp_path / "out")
    with Image.open(tmp_path / "out/overlays/large/000001.jpg") as picture:
        assert picture.size == (800, 480)
