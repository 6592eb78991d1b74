"""Small objects in large images: the bundled detector on sheets of BCCD's test images, whole and in tiles.

    python benchmarks/tiles.py [--across 2] [--overlap 0.2]

A sheet has `across` x `across` images beside each other, so that cells are that much smaller on the canvas. Of a sheet,
as of any image, COCO's numbers count 100 detections; `--across 2` has 53 objects on a sheet. Beside
ours: supervision's slicer, with its non-maximum suppression, and the detector on each image alone, which is what
tiles can reach at best. Times are CPU seconds for a sheet.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import supervision
from PIL import Image

import boxwright
from boxwright.bundled.demo import DATA
from boxwright.data.read import read
from boxwright.data.records import Record
from boxwright.evaluation.coco import score
from boxwright.images import open_image

LEAST = 0.001  # score: all of the curve counts


def sheets(records: list[Record], across: int) -> list[tuple[Image.Image, Record]]:
    """Sheets of images, each with the objects of all its images."""
    made = []
    for first in range(0, len(records) - across**2 + 1, across**2):
        part = records[first : first + across**2]
        width, height = max(r.width for r in part), max(r.height for r in part)
        sheet, places = Image.new("RGB", (across * width, across * height)), []
        for number, record in enumerate(part):
            place = (number % across * width, number // across * height)
            sheet.paste(open_image(record.path), place)
            places.append(record.boxes_N4 + np.tile(place, 2))
        labels, ignore = (np.concatenate([getattr(r, name) for r in part]) for name in ("labels_N", "ignore_N"))
        path = part[0].path
        made.append((sheet, Record(path, *sheet.size, np.concatenate(places), labels, ignore, len(made) + 1, "")))
    return made


def sliced(detector: boxwright.Predictor, side: int, overlap: float) -> Callable[[Image.Image], boxwright.Detections]:
    """Supervision's slicer around a detector."""

    def detect(tile: np.ndarray) -> supervision.Detections:
        return detector.predict(np.ascontiguousarray(tile), LEAST).to_supervision()

    pixels = round(side * overlap)
    slicer = supervision.InferenceSlicer(detect, slice_wh=(side, side), overlap_wh=(pixels, pixels), iou_threshold=0.5)

    def whole(image: Image.Image) -> boxwright.Detections:
        found = slicer(np.asarray(image))
        boxes, scores, labels = found.xyxy, found.confidence, found.class_id
        return boxwright.Detections(boxes, scores, labels, detector.names)

    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--across", type=int, default=2)
    parser.add_argument("--overlap", type=float, default=0.2)
    a = parser.parse_args()
    detector, dataset = boxwright.load("demo", device="cpu"), read(DATA)
    assert isinstance(detector, boxwright.Predictor)
    records = list(dataset.splits["test"])
    made = sheets(records, a.across)
    side = max(records[0].width, records[0].height)
    ways: dict[str, Callable[[Image.Image], boxwright.Detections]] = {
        "whole sheet": lambda image: detector.predict(image, LEAST),
        f"--tile {side} --overlap {a.overlap}": lambda image: detector.predict(
            image, LEAST, tile=side, overlap=a.overlap
        ),
        "supervision's slicer": sliced(detector, side, a.overlap),
    }
    size = f"{made[0][0].width} x {made[0][0].height}"
    print(f"{len(made)} sheets of {size} pixels\n\n| how | AP | AP50 | AR100 | s |\n| --- | --- | --- | --- | --- |")
    for name, way in ways.items():
        started = time.process_time()
        found = [way(image) for image, _ in made]
        row(name, [record for _, record in made], found, dataset.names, (time.process_time() - started) / len(made))
    used = records[: len(made) * a.across**2]
    started = time.process_time()
    found = [detector.predict(record.path, LEAST) for record in used]
    row("each image alone", used, found, dataset.names, (time.process_time() - started) / len(made))


def row(
    name: str, records: list[Record], found: list[boxwright.Detections], names: tuple[str, ...], took: float
) -> None:
    """Print a line of the table."""
    report = score(records, found, names)
    print(f"| {name} | {report.ap:.3f} | {report.ap50:.3f} | {report.stats[8]:.3f} | {took:.2f} |", flush=True)


if __name__ == "__main__":
    main()
