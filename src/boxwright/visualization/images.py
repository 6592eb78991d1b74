"""Images with boxes on them: predictions beside the targets, and what the network sees. All are PIL images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from boxwright.data.records import Record
from boxwright.detections import Detections
from boxwright.drawing import LabelledBox, colour, draw, draw_boxes, font
from boxwright.images import open_image
from boxwright.types import Batch

THRESHOLDS = (0.75, 0.5, 0.0)
_IGNORED = "#8f8f8f"


def draw_annotated(record: Record, names: Sequence[str], image: Image.Image | None = None) -> Image.Image:
    """The image with its annotated objects; ignored ones (difficult, crowds) are grey.

    The image is read from its file if it isn't given.
    """
    boxes = [
        LabelledBox(
            box, f"{names[label]} (ignored)" if ignored else names[label], _IGNORED if ignored else colour(label)
        )
        for box, label, ignored in zip(record.boxes_N4, record.labels_N, record.ignore_N, strict=True)
    ]
    return draw_boxes(image or open_image(record.path), boxes)


def side_by_side(
    record: Record, detections: Detections, names: Sequence[str], image: Image.Image | None = None
) -> Image.Image:
    """Detections at score thresholds 0.75, 0.50 and none, and the ground truth, in a grid.

    `names` are the classes of `record`; colours agree where the detector's classes have the same positions. The image
    is read from its file if it isn't given, in the size that the boxes refer to.
    """
    image = image or open_image(record.path)
    panels = [draw(image, detections, threshold) for threshold in THRESHOLDS]
    captions = [f"score over {threshold:.2f}" if threshold else "every detection" for threshold in THRESHOLDS]
    return grid([*panels, draw_annotated(record, names, image)], [*captions, "ground truth"], columns=2)


def show_batch(batch: Batch, names: Sequence[str], records: Sequence[Record] = (), most: int = 16) -> Image.Image:
    """The first images of a batch as the network gets them, with their target boxes; padding is hatched.

    `records` are all images of the data, which name those of the batch; without them, images are numbered.
    """
    panels = [_canvas(batch, i, names) for i in range(min(len(batch), most))]
    captions = [records[int(i)].path.name if records else f"image {int(i)}" for i in batch.index_B[:most]]
    drawn = grid(panels, captions, columns=math.ceil(math.sqrt(len(panels))), largest=512)
    return _with_note(drawn, "hatched: padding, which is no part of the image")


def _with_note(image: Image.Image, text: str) -> Image.Image:
    """The image with a line of text below it."""
    page = Image.new("RGB", (image.width, image.height + 30), "white")
    page.paste(image)
    ImageDraw.Draw(page).text((12, image.height + 10), text, fill="#222222", font=font(15), anchor="lm")
    return page


def grid(images: Sequence[Image.Image], captions: Sequence[str], columns: int, largest: int = 800) -> Image.Image:
    """Images in rows with a caption over each; each at most `largest` pixels on its long side."""
    panels = [image.copy() for image in images]
    for panel in panels:
        panel.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    gap, caption_height = 12, 30
    width = max(panel.width for panel in panels) + gap
    height = max(panel.height for panel in panels) + caption_height + gap
    rows = math.ceil(len(panels) / columns)
    page = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    pen = ImageDraw.Draw(page)
    for i, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        x, y = gap + i % columns * width, gap // 2 + i // columns * height
        pen.text(
            (x, y + caption_height / 2),
            _shortened(caption, panels[i].width),
            fill="#222222",
            font=font(15),
            anchor="lm",
        )
        page.paste(panel, (x, y + caption_height))
    return page


def _shortened(text: str, width: int) -> str:
    """The text, without a part of its middle where it is wider than so many pixels."""
    short, left = text, len(text)
    while left > 8 and font(15).getlength(short) > width:
        left -= 1
        short = f"{text[: left // 2]}...{text[len(text) - left // 2 :]}"
    return short


def _canvas(batch: Batch, position: int, names: Sequence[str]) -> Image.Image:
    """One image of a batch with its target boxes on the canvas."""
    pixels_CHW = batch.images_BCHW[position].detach().cpu()
    if pixels_CHW.is_floating_point():
        pixels_CHW = (pixels_CHW.float().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels_HWC = pixels_CHW.permute(1, 2, 0).numpy().copy()
    height, width = batch.sizes_B2[position].tolist()
    rows, columns = np.indices(pixels_HWC.shape[:2])
    padding = (rows >= height) | (columns >= width)
    stripes = (rows + columns) // 4 % 4 == 0
    pixels_HWC[padding] = np.where(stripes[padding], 105, 70)[:, None]
    valid = batch.valid_BN[position].cpu()
    side = torch.tensor(pixels_HWC.shape[1::-1]).repeat(2)
    boxes_N4 = (batch.boxes_BN4[position].cpu()[valid] * side).numpy()
    labels = batch.labels_BN[position].cpu()[valid].tolist()
    boxes = [LabelledBox(box, names[label], colour(label)) for box, label in zip(boxes_N4, labels, strict=True)]
    return draw_boxes(Image.fromarray(pixels_HWC), boxes)
