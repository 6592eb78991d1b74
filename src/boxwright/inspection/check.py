"""`boxwright check`: the faults of a data set, a page that shows them and the statistics, a corrected copy."""

from __future__ import annotations

import json as json_
from pathlib import Path

from rich.text import Text

from boxwright.config import require
from boxwright.console import make_console
from boxwright.data.check import CheckReport, examine, show
from boxwright.data.parsed import printable
from boxwright.data.read import parse
from boxwright.files import as_location, require_writable
from boxwright.inspection.mend import require_apart, write_mended


def check(
    data: Path | str, json: bool = False, out: Path | str | None = None, fix: Path | str | None = None
) -> CheckReport:
    """Read a whole data set, decode every image, and report all problems at once and how to fix them.

    Args:
        data: a folder, annotation file or archive of any format that boxwright reads (docs/data-formats.md).
        json: print one JSON object instead of tables.
        out: an HTML file to write, with classes, sizes, near-duplicate images and each fault in pictures.
        fix: a new folder for a copy in which everything is fixed that can be fixed in only one way. The data set itself
            is never changed.

    Returns:
        The report.

    Raises:
        UserError: there is no such data set, its format is unknown or it has two, `out` or `fix` can't be written, or
            a person must decide about a fault before a corrected copy can be written.
    """
    page = None if out is None else _page_file(Path(out))
    if fix is not None:
        require_apart(Path(fix), Path(data))
    place = as_location(data)
    parsed = parse(place)
    report = examine(parsed, place)
    if json:
        print(json_.dumps(report.to_json(), indent=2))  # ASCII, so that any terminal's encoding holds it
    else:
        show(report)
    if page is not None:
        from boxwright.inspection.page import write_page  # scipy and jinja2, which the rest can do without

        write_page(page, parsed, report)
        make_console(stderr=True).print(f"written: {page}")
    if fix is not None:
        changes = write_mended(parsed, report.faults, Path(fix))
        console = make_console(stderr=json)
        for change in changes:
            console.print(Text(printable(f"  {change.where}: {change.what}")))
        console.print(Text(f"written: {fix}, with {len(changes):,} changes"))
    return report


def _page_file(out: Path) -> Path:
    """The file of the page: `out` itself, with ``.html`` where it has no ending, or a file in an existing folder."""
    file = out / "check.html" if out.is_dir() else out if out.suffix else out.with_name(f"{out.name}.html")
    good = file.suffix.lower() in (".html", ".htm")
    require(good, f"{out} is not the name of a page; give one that ends in .html")
    require_writable(file.parent)
    return file
