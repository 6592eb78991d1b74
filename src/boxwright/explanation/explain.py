"""The command `explain`: why a detector predicts what it predicts for an image, on one page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from PIL import Image

from boxwright.checkpoints.detector_file import load_detector, read_config
from boxwright.config import require
from boxwright.console import make_console
from boxwright.device import choose_device
from boxwright.explanation import query_page, sequence_page
from boxwright.explanation.attention_maps import RecordedPass, record_pass
from boxwright.explanation.generation_trace import trace_generation
from boxwright.explanation.html_parts import LIKELY
from boxwright.files import require_writable
from boxwright.images import open_image
from boxwright.inference.predictor import to_batch
from boxwright.models.registry import DETECTORS, name_of
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.runtime.inputs import DecodedImage
from boxwright.types import Detector


def explain(
    weights: Path | str,
    image: Path | str,
    out: Path | str = Path("runs/explain"),
    device: str = "auto",
    query: int | None = None,
    pixel: tuple[int, int] | None = None,
) -> Path:
    """Show why a pix2seq, patchseq, detr or deformable predicts what it predicts for an image.

    Writes one page, OUT/IMAGE.html, that needs no other file. For a pix2seq, or a patchseq that copies objects from
    proposals: every token of the sequence with its probability and the most probable alternatives; for the best 8
    objects the distribution of each coordinate or corner over the image, and the decoder's attention for each token;
    where objects are copied from proposals, the weight of each proposal and of the decoder's own box. For a detr or
    deformable: the attention of the queries with the highest scores, layer by layer and head by head, their prediction
    after each layer, and the encoder's attention at the middle of their boxes.

    Args:
        weights: a checkpoint or the folder of a training run.
        image: an image file.
        out: folder of the page.
        device: auto, cpu, cuda or mps.
        query: for a detr or deformable, show only this query; queries are counted from 1.
        pixel: for a detr or deformable, show what this pixel (x and y in the image) attends to, and what attends to
            it.

    Returns:
        The page.
    """
    console, path = make_console(), Path(image)
    require_writable(Path(out))
    _require_pages(read_config(weights)[0])
    device, _ = choose_device(device)
    detector = load_detector(weights, device)
    photo = open_image(path)
    batch = to_batch([DecodedImage(photo, photo.size)], detector.image_size).to(device)
    file = Path(out) / f"{path.name}.html"
    title, note = f"Predictions for {path.name}, explained", f"{weights} on {image}."
    command = shlex.join(["boxwright", "explain", str(weights), str(image)])
    how = "written, in place of an earlier page" if file.exists() else "written"
    _require_explained(detector, query, pixel)
    if detector.explained_as == "queries":
        recorded = record_pass(detector, batch)
        queries, point = _choose(recorded, photo, query, pixel)
        query_page.write_page(file, title, photo, recorded, note, queries, point, command)
        scores = recorded.scores_LQK[-1].max(-1)
        objects = f"{recorded.n_queries} queries"
    else:
        trace = trace_generation(cast(SequenceDetector, detector), batch)[0]
        sequence_page.write_page(file, title, photo, trace, note, command)
        scores = trace.found.scores_N
        objects = f"{len(trace)} objects generated"
    console.print(f"{path.name}: {objects}, {int((scores > LIKELY).sum())} with a score over {LIKELY:.2f}")
    console.print(f"{how}: {file}")
    return file


def _require_pages(name: str) -> None:
    """Raise `UserError` for a detector of which no size has a page."""
    pages = {model: network.explained_as for model, (network, _, _) in DETECTORS.items()}
    can = _listed([model for model, explained_as in pages.items() if explained_as])
    problem = f"a {name} can't be explained; a {can} can, and `predict` draws what any of them finds."
    require(pages[name], problem)


def _require_explained(detector: Detector, query: int | None, pixel: tuple[int, int] | None) -> None:
    """Raise `UserError` for a detector as published, without a page, or for a query or pixel of one without queries."""
    name, pages = name_of(detector), {model: network.explained_as for model, (network, _, _) in DETECTORS.items()}
    with_queries = _listed([model for model, explained_as in pages.items() if explained_as == "queries"])
    which = "as published can't be explained, one with proposals (nano, small, medium) can"
    require(detector.explained_as, f"a {name} {which}, and `predict` draws what any of them finds.")
    asked = query is not None or pixel is not None
    problem = f"--query and --pixel are for a {with_queries}; this is a {name}."
    require(detector.explained_as == "queries" or not asked, problem)


def _listed(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _choose(
    recorded: RecordedPass, photo: Image.Image, query: int | None, pixel: tuple[int, int] | None
) -> tuple[list[int], tuple[float, float] | None]:
    """The queries to show, counted from 0, and the middle of the pixel in fractions of the image."""
    n = recorded.n_queries
    require(query is None or 1 <= query <= n, f"--query must be from 1 to {n}, which this detector has, not {query}.")
    if pixel is None:
        return query_page.choose(recorded) if query is None else [query - 1], None
    width, height = photo.size
    inside = 0 <= pixel[0] < width and 0 <= pixel[1] < height
    require(inside, f"--pixel must lie in the image, which is {width} wide and {height} high, not at {list(pixel)}.")
    return [] if query is None else [query - 1], ((pixel[0] + 0.5) / width, (pixel[1] + 0.5) / height)
