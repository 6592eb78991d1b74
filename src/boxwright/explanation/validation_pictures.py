"""Pictures that each validation writes, to follow learning: detections in a few images, and what explains them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from boxwright.data.loader import BatchSource
from boxwright.data.records import Record
from boxwright.explanation.attention_maps import RecordedPass, record_pass
from boxwright.explanation.generation_trace import GenerationTrace, trace_generation
from boxwright.explanation.html_parts import resized
from boxwright.explanation.query_page import attention_picture
from boxwright.explanation.sequence_page import corner_picture, source_picture
from boxwright.files import write_whole
from boxwright.models.sequence.proposal_decoder import CLASS_SLOT
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.types import Batch, Detections, Detector, evaluating
from boxwright.visualization import heatmaps, images

IMAGES, OBJECTS = 3, 3
_PANEL = 320  # long side of each picture, in pixels


def write_validation_pictures(
    detector: Detector, cache: BatchSource, records: Sequence[Record], found: Sequence[Detections], folder: Path
) -> None:
    """Write pictures of a few images, always the same ones.

    `validation/NUMBER-NAME.jpg` shows detections at three thresholds beside the annotated objects;
    `explain/NUMBER-NAME.jpg`, if the detector can be explained, tokens or attention of its first predictions.

    Args:
        detector: keeps its mode, training or evaluation.
        cache: the validation images.
        records: their annotations.
        found: detections in each image.
        folder: folder of the run.
    """
    chosen = np.unique(np.linspace(0, len(cache) - 1, min(IMAGES, len(cache))).round().astype(int)).tolist()
    for position in chosen:  # from the cache: image files may have been moved since the run began
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
    """What explains the predictions for the one image of a batch."""
    photo, batch = resized(_photo(batch), _PANEL), batch.to(next(detector.parameters()).device)
    if detector.explained_as == "queries":
        return query_picture(photo, record_pass(detector, batch))
    sequence_detector = cast(SequenceDetector, detector)
    objects = min(OBJECTS, sequence_detector.config.max_objects)
    return sequence_picture(photo, trace_generation(sequence_detector, batch, objects)[0])


def query_picture(photo: Image.Image, recorded: RecordedPass) -> Image.Image:
    """A row for each of the best queries: its box, its attention in the first and in the last layer of the decoder, and
    the encoder's attention at the centre of the box.
    """
    pictures, captions = [], []
    for query in recorded.best(OBJECTS):
        (label, score), maps, centre = (
            recorded.prediction(query),
            recorded.query_maps(query),
            recorded.box_centre(query),
        )
        box = photo.copy()
        heatmaps.draw_box(box, recorded.box(query))
        pictures += [
            box,
            attention_picture(photo, maps[0], recorded.box(query, 0)),
            attention_picture(photo, maps[-1], recorded.box(query)),
            attention_picture(photo, recorded.pixel_maps(centre)[-1][0], None, centre),
        ]
        captions += [f"query {query + 1}: {recorded.names[label]} {score:.2f}", "decoder, first layer"]
        captions += ["decoder, last layer", "encoder, last layer"]
    return images.grid(pictures, captions, columns=4, largest=_PANEL)


def sequence_picture(photo: Image.Image, trace: GenerationTrace) -> Image.Image:
    """A row for each object: its tokens and its box, the distributions of both corners, and the decoder's attention, or
    the proposals that it may be copied from.
    """
    pictures, captions = [], []
    for n in range(len(trace)):
        tokens = " ".join(trace.token_names[token] for token in trace.tokens_N5[n])
        box = photo.copy()
        heatmaps.draw_box(box, trace.box(n))
        if trace.copied is None:
            attention_HW = trace.attention_N5HW[n].mean(0)
            last, origin = heatmaps.attention_heat(photo, attention_HW, trace.valid_2, trace.box(n)), "attention"
        else:
            last, origin = source_picture(photo, trace, n, CLASS_SLOT), trace.copied.name(trace.copied.source(n))
        pictures += [box, corner_picture(photo, trace, n, 1), corner_picture(photo, trace, n, 3), last]
        score = f"score {trace.found.scores_N[n]:.2f}"
        captions += [f"{n + 1}: {tokens}", "upper left corner", "lower right corner", f"{origin}; {score}"]
    return images.grid(pictures or [photo], captions or ["ended before its first object"], columns=4, largest=_PANEL)


def _photo(batch: Batch) -> Image.Image:
    """The valid area of the one image of a batch."""
    height, width = batch.sizes_B2[0].tolist()
    return Image.fromarray(batch.images_BCHW[0, :, :height, :width].permute(1, 2, 0).cpu().numpy())
