"""The verb `merge-results`: joins the parts of `predict --part` to the files that one process would have written."""

from __future__ import annotations

from pathlib import Path

from boxwright.console import make_console
from boxwright.inference.parts import read_manifests, read_records
from boxwright.inference.results import require_parquet, write_results
from boxwright.inference.summary import Summary, files, report


def merge_results(out: Path | str, parquet: bool = False) -> Summary:
    """Join the parts of `predict --part` to predictions.json and predictions.csv, as one process would have written.

    Memory does not grow with the number of images. The parts stay where they are.

    Args:
        out: the folder that was given to `predict --out`.
        parquet: write predictions.parquet, too, one row per image (needs the extra `parquet`).

    Returns:
        The counts; its exit_code is 1 if an image could not be read.

    Raises:
        UserError: if a part is missing or damaged.
    """
    if parquet:
        require_parquet()
    summary = merge_parts(Path(out), parquet)
    report(make_console(), summary, files(summary, parquet))
    return summary


def merge_parts(out: Path, parquet: bool) -> Summary:
    """`merge_results`, without a word."""
    manifests = read_manifests(out)
    write_results(read_records(out, manifests), manifests[0].names, out, parquet)
    return Summary.of(out, manifests)
