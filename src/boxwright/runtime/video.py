"""A video file as a stream of frames."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from boxwright.config import UserError, require
from boxwright.extras import how_to_install

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv"})


def is_video(path: Path | str) -> bool:
    """Whether its name ends as a video's does."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def frames(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    """Each frame as displayed, (H, W, 3) uint8 RGB, after the second at which it is shown. Decoded one at a time.

    Raises:
        UserError: the file is missing, damaged, or has no picture; or PyAV is not installed.
    """
    require(path.is_file(), f"there is no file {path}.")
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError(how_to_install("reading a video", error.name)) from None
    try:
        with av.open(str(path)) as container:
            require(container.streams.video, f"{path} has no picture.")
            for frame in container.decode(container.streams.video[0]):
                yield frame.time or 0.0, np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    except av.FFmpegError as error:
        raise UserError(f"{path}: cannot be read as a video: {error.strerror or error}.") from error
