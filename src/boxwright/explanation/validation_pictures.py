"""What validation leaves behind, so that learning can be watched: what is found in a few images, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from boxwright.data.cache import Cache
from boxwright.data.records import Record
from boxwright.evaluation.run import evaluating
from boxwright.explanation.attention_maps import Pass, watch
from boxwright.explanation.generation_trace import Sentence, write_sentences
from boxwright.explanation.html_parts import resized
from boxwright.explanation.query_page import look_picture
from boxwright.explanation.sentence_page import corner_picture
from boxwright.files import write_whole
from boxwright.models.pix2seq import Pix2Seq
from boxwright.types import Batch, Detections, Detector
from boxwright.visualization import heatmaps, images

IMAGES, OBJECTS = 3, 3
_PANEL = 320  # long side of each picture, in pixels


def write_sheets(
    detector: Detector, cache: Cache, records: Sequence[Record], found: Sequence[Detections], folder: Path
) -> None:
    """Write pictures of a few images, always the same ones: `validation/NUMBER-NAME.jpg`, what is found at three
    thresholds beside what is true, and `explain/NUMBER-NAME.jpg`, how it is found, of detectors that can be explained.

    Args:
        detector: left in the mode it was in.
        cache: the images.
        records: the same images, as they are annotated.
        found: what the detector says of each image.
        folder: of the run.
    """
    chosen = np.unique(np.linspace(0, len(cache) - 1, min(IMAGES, len(cache))).round().astype(int)).tolist()
    for position in chosen:  # of the cache, because the files may have been moved since the run began
        record, batch = records[position], cache.batch([position])
        height, width = batch.originals_B2[0].tolist()
        image = _photo(batch).resize((width, height), Image.Resampling.BICUBIC)
        picture = images.side_by_side(record, found[position], detector.names, image)
        _save(picture, folder / "validation", position, record)
    if detector.explained_as:
        with evaluating(detector):
            for position in chosen:
                _save(_explained(detector, cache.batch([position])), folder / "explain", position, records[position])


def _save(picture: Image.Image, folder: Path, position: int, record: Record) -> None:
    file = folder / f"{position + 1:05d}-{record.path.stem}.jpg"
    write_whole(file, lambda temporary: picture.save(temporary, format="jpeg", quality=85))


def _explained(detector: Detector, batch: Batch) -> Image.Image:
    """How what is said of the one image of a batch came about."""
    photo, batch = resized(_photo(batch), _PANEL), batch.to(next(detector.parameters()).device)
    if detector.explained_as == "queries":
        return query_sheet(photo, watch(detector, batch))
    return sheet(photo, write_sentences(cast(Pix2Seq, detector), batch, min(OBJECTS, detector.config.max_objects))[0])


def query_sheet(photo: Image.Image, seen: Pass) -> Image.Image:
    """A row for each of the surest queries: its box, where it looked in the first and in the last layer of the
    decoder, and where the encoder looked from the middle of the box.
    """
    pictures, captions = [], []
    for query in seen.best(OBJECTS):
        (label, score), looks, middle = seen.said(query), seen.query_looks(query), seen.middle(query)
        said = photo.copy()
        heatmaps.outline(said, seen.box(query))
        pictures += [
            said,
            look_picture(photo, looks[0], seen.box(query, 0)),
            look_picture(photo, looks[-1], seen.box(query)),
            look_picture(photo, seen.pixel_looks(middle)[-1][0], None, middle),
        ]
        captions += [f"query {query + 1}: {seen.names[label]} {score:.2f}", "decoder, first layer"]
        captions += ["decoder, last layer", "encoder, last layer"]
    return images.grid(pictures, captions, columns=4, largest=_PANEL)


def sheet(photo: Image.Image, sentence: Sentence) -> Image.Image:
    """A row for each object: its words and its box, where both corners may lie, where the decoder looked."""
    pictures, captions = [], []
    for n in range(len(sentence)):
        words = " ".join(sentence.words[token] for token in sentence.tokens_N5[n])
        written = photo.copy()
        heatmaps.outline(written, sentence.box(n))
        looked_HW = sentence.attention_N5HW[n].mean(0)
        pictures += [
            written,
            corner_picture(photo, sentence, n, 1),
            corner_picture(photo, sentence, n, 3),
            heatmaps.attention_heat(photo, looked_HW, sentence.part_2, sentence.box(n)),
        ]
        score = f"score {sentence.found.scores_N[n]:.2f}"
        captions += [f"{n + 1}: {words}", "upper left corner", "lower right corner", f"attention; {score}"]
    return images.grid(pictures or [photo], captions or ["ended before its first object"], columns=4, largest=_PANEL)


def _photo(batch: Batch) -> Image.Image:
    """The part of the canvas that is image, of the one image of a batch."""
    height, width = batch.sizes_B2[0].tolist()
    return Image.fromarray(batch.images_BCHW[0, :, :height, :width].permute(1, 2, 0).cpu().numpy())
