"""Pack BCCD for the package: the official test split as it is, trainval shrunk to 320 x 240, both as COCO JSON.

    python runs/bundle_bccd.py BCCD src/boxwright/bundled/bccd

BCCD is the folder with Annotations/, JPEGImages/ and ImageSets/ (github Shenggan/BCCD_Dataset, MIT). The result is
about 3 MB of images, which `boxwright demo` predicts on and `boxwright demo --train` trains on.
"""

import argparse
import json
import shutil
from pathlib import Path

from PIL import Image

from boxwright.data.read import read
from boxwright.data.records import Dataset, Record

SHRINK = 2  # 640 x 480 to 320 x 240, the resolution of the demo's detector


def main(source: Path, target: Path) -> None:
    """Write both splits."""
    dataset = read(source)
    (target / "annotations").mkdir(parents=True, exist_ok=True)
    pack(dataset, dataset.splits["test"], target, "test", shrink=1)
    pack(dataset, dataset.splits["train"] + dataset.splits["val"], target, "train", shrink=SHRINK)
    for name in ("LICENSE", "README.md"):
        shutil.copy(next(path / name for path in (source, *source.parents) if (path / name).is_file()), target / name)


def pack(dataset: Dataset, records: list[Record], target: Path, split: str, shrink: int) -> None:
    """Images of one split as files, its boxes as one JSON file."""
    (target / split).mkdir(exist_ok=True)
    images, annotations = [], []
    for number, record in enumerate(records, start=1):
        if shrink == 1:
            file = shutil.copy(record.path, target / split / record.path.name)
        else:
            file = target / split / f"{record.path.stem}.webp"
            size = record.width // shrink, record.height // shrink
            Image.open(record.path).convert("RGB").resize(size, Image.Resampling.BICUBIC).save(
                file, quality=80, method=6
            )
        width, height = Image.open(file).size
        images.append({"id": number, "file_name": Path(file).name, "width": width, "height": height})
        for (x1, y1, x2, y2), label in zip(record.boxes_N4 / shrink, record.labels_N, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(dataset.names, start=1)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories}, separators=(",", ":"))
    (target / "annotations" / f"instances_{split}.json").write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    main(**vars(parser.parse_args()))
