"""Find image files: a file, a folder, a glob or a text file of paths becomes a list."""

from __future__ import annotations

import codecs
import glob
import os
from collections.abc import Iterable
from pathlib import Path

from boxwright.config import UserError, require
from boxwright.files import name_on_disk
from boxwright.images import IMAGE_SUFFIXES, image_size

_ENDINGS = " ".join(sorted(IMAGE_SUFFIXES))


def collect(source: str | Path) -> list[Path]:
    """The image files that `source` names, in sorted order (a text file's own order), each once.

    - An image file is itself, whatever its ending if it can be read.
    - A folder means all images in it and in its subfolders; other files and hidden ones are skipped.
    - A glob such as ``shots/*.jpg`` or ``shots/**/*.png`` (quoted, so that the shell leaves it alone) means the images
      among its matches.
    - A ``.txt`` file names one image a line, relative to the text file's own folder. Empty lines and lines that start
      with ``#`` are skipped. Nothing is checked here: a wrong path is found when the image is opened.

    Raises:
        UserError: if there is no such file, its ending is not an image's, or no image is found.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found, where = sorted(_images(_walk(path))), f"in the folder {path} (subfolders included)"
    elif path.is_file() and path.suffix.lower() == ".txt":
        found, where = _listed(path), f"named in {path}"
    elif path.is_file():
        require(
            _is_image(path) or _is_readable(path),
            f"{path} is not an image that can be read, nor a .txt list of images; unpack it first if it is an archive.",
        )
        return [path]
    else:
        require(glob.has_magic(str(source)), f"there is no file or folder {source}.")
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob wants a root)
        found, where = sorted(_images(Path(match) for match in matches)), f"by the pattern {source}"
    require(found, f"no image found {where}; images end in {_ENDINGS}.")
    return list(dict.fromkeys(found))


def short_names(paths: Iterable[Path]) -> list[str]:
    """Each path relative to the deepest folder that holds them all, with forward slashes: short, but distinct."""
    whole = [path.absolute() for path in paths]
    root = Path(os.path.commonpath([path.parent for path in whole]))
    return [path.relative_to(root).as_posix() for path in whole]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _is_readable(path: Path) -> bool:
    """Whether Pillow knows the format of a file."""
    try:
        return min(image_size(path)) > 0
    except UserError:
        return False


def _images(paths: Iterable[Path]) -> Iterable[Path]:
    return (path for path in paths if _is_image(path) and path.is_file())


def _walk(folder: Path) -> Iterable[Path]:
    """All files below a folder, without hidden files and folders."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _listed(file: Path) -> list[Path]:
    try:
        text = file.read_bytes().removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise UserError(f"{file} can't be read as a list of paths: {error}.") from error
    require("\0" not in text, f"{file} can't be read as a list of paths: it is no text.")
    named = (name_on_disk(line.strip()) for line in text.splitlines())
    return [file.parent / Path(name).expanduser() for name in named if name and not name.startswith("#")]
