"""Files are written whole or not at all, and what can't be written is known beforehand."""

import tempfile
from pathlib import Path

import pytest

from boxwright.config import UserError
from boxwright.files import csv_text, require_writable


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    require_writable(tmp_path)
    require_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UserError, match=r"file is a file, not a folder; give another --out\.$"):
            require_writable(place)


def test_the_reason_of_the_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"out: Read-only file system; give another --out\.$"):
        require_writable(tmp_path / "out")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\t=1", "cat", "a=b"])
def test_no_name_is_a_formula(name):
    cell = csv_text(name)
    assert cell.lstrip("'") == name
    assert cell[0] not in "=+-@\t"
