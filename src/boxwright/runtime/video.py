"""A video file as a stream of frames."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.config import UserError, require
from boxwright.extras import how_to_install

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv"})


def is_video(path: Path | str) -> bool:
    """Whether the path ends in one of `VIDEO_SUFFIXES`."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def frames(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    """The time in seconds and the pixels, (H, W, 3) uint8 RGB as displayed, of each frame; decoded one at a time.

    Raises:
        UserError: the file is missing, has no picture, or no frame of it can be read; PyAV is not installed; or, after
            the frames that can be read, the file is damaged or ends before its time.
    """
    require(path.is_file(), f"there is no file {path}.")
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError(how_to_install("reading a video", error.name)) from None
    count, second = 0, 0.0
    try:
        with av.open(str(path)) as container:
            require(container.streams.video, f"{path} has no picture.")
            first, begins, end = container.streams.video[0], (container.start_time or 0) / av.time_base, 0.0
            for packet in container.demux():
                end = max(end, _end(packet) - begins)
                if packet.stream is not first:
                    continue
                for frame in packet.decode():
                    count, second = count + 1, frame.time or 0.0  # type: ignore[union-attr]
                    yield second, _upright(frame)
            whole = (container.duration or 0) / av.time_base
    except av.FFmpegError as error:
        why = error.strerror or str(error)
        if count:
            raise UserError(f"{path}: damaged after the frame at {second:.2f} s, the last one read: {why}.") from error
        raise UserError(f"{path}: cannot be read as a video: {why}.") from error
    require(count, f"{path}: cannot be read as a video: there is no frame in it, or it is cut short.")
    # The length in a file's header is not exact.
    short = whole - end > max(0.5, 0.02 * whole)
    require(not short, f"{path}: cut short: it ends after {end:.2f} of {whole:.2f} s.")


def _end(packet: Any) -> float:
    """The time in seconds at which a packet ends; 0 if it doesn't say."""
    return 0.0 if packet.pts is None else float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _upright(frame: Any) -> np.ndarray:
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
