"""Small data sets written to disk for the tests of the readers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

XML = """<annotation><filename>{name}</filename>
<size><width>{w}</width><height>{h}</height><depth>3</depth></size>{objects}
</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"""


def image(path: Path, width: int = 40, height: int = 30, seed: int | None = None) -> Path:
    """A PNG or JPEG of noise; the seed comes from the path unless given."""
    seed = sum(map(ord, str(path))) * 1009 + len(str(path)) if seed is None else seed
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def coco_content(n_images: int = 3, first: int = 1) -> dict[str, list[dict[str, Any]]]:
    """A COCO file of two classes with ids 3 and 7; image k has one cat, and image 1 a dog besides."""
    ids = range(first, first + n_images)
    images = [{"id": i, "file_name": f"{i:03}.jpg", "width": 40, "height": 30} for i in ids]
    rows = [(i, 3, [4, 5, 10.5, 12]) for i in ids] + [(first, 7, [20, 10, 8, 8])]
    annotations = [
        {"id": k, "image_id": i, "category_id": c, "bbox": b} for k, (i, c, b) in enumerate(rows, first * 100)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def write_json(path: Path, content: object) -> Path:
    """The content as a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def coco(root: Path, content: dict[str, Any] | None = None) -> Path:
    """`annotations.json` and `images/`."""
    content = coco_content() if content is None else content
    for row in content["images"]:
        image(root / "images" / row["file_name"])
    write_json(root / "annotations.json", content)
    return root


def xml(path: Path, objects: str = "", name: str = "", width: object = 40, height: object = 30) -> Path:
    """A VOC file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(XML.format(name=name or f"{path.stem}.jpg", w=width, h=height, objects=objects))
    return path


def thing(name: str = "cat", box: tuple[object, ...] = (4, 5, 14, 17), difficult: int = 0) -> str:
    """An <object>."""
    x1, y1, x2, y2 = box
    return OBJECT.format(name=name, difficult=difficult, x1=x1, y1=y1, x2=x2, y2=y2)


def voc(root: Path, splits: dict[str, list[str]] | None = None) -> Path:
    """A devkit of the stems in `splits`."""
    for split, stems in (splits or {"train": ["a", "b"], "val": ["c"]}).items():
        for stem in stems:
            image(root / "JPEGImages" / f"{stem}.jpg")
            xml(root / "Annotations" / f"{stem}.xml", thing() + thing("dog", (20, 10, 28, 18)))
        lists = root / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root


def yolo(root: Path, yaml: str = "train: images/train\nval: images/val\nnames: [cat, dog]\n") -> Path:
    """Two training images and one for validation, with labels and `data.yaml`."""
    for place in ("train/a", "train/b", "val/c"):
        image(root / "images" / f"{place}.jpg")
        label = root / "labels" / f"{place}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.1 0.1\n")
    (root / "data.yaml").write_text(yaml)
    return root
