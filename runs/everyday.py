"""Train the detector of everyday things: `dense` nano, COCO's 80 classes, few images, and a teacher that knows more.

    python runs/everyday.py DATA TEACHER OUT [--epochs 24] [--image-size 256] [--weights W] [--resume]

DATA holds coco-mini-train, coco-mini-val and voc-animals-train (COCO JSON); TEACHER is yolox_nano.onnx. Objects that
nobody annotated (60 of the 80 classes in voc-animals) are the teacher's where it is sure, and its scores of all cells
are soft targets (`boxwright.training.teacher`). What is reported is measured on coco-mini-val and voc-animals-val,
which choose nothing: the averaged weights of the last epoch count. coco-mini is a part of COCO's val2017, so that
none of it is a result on that set.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from yolox_teacher import YoloxNano

from boxwright.data.read import read
from boxwright.training.config import RunConfig
from boxwright.training.resolve import resolve
from boxwright.training.run import run

RENAMED = {
    "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "pottedplant": "potted plant",
    "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip


def merge(folders: list[Path], target: Path) -> None:
    """Write the images and objects of several folders as one; classes are those of the first."""
    merged: dict[str, Any] = {"images": [], "annotations": []}
    ids: dict[str, int] = {}
    (target / "images").mkdir(parents=True, exist_ok=True)
    for folder in folders:
        content = json.loads((folder / "annotations.json").read_text())
        merged.setdefault("categories", content["categories"])
        ids = ids or {category["name"]: category["id"] for category in content["categories"]}
        names = {category["id"]: category["name"] for category in content["categories"]}
        new_ids = {}
        for image in content["images"]:
            new_ids[image["id"]] = len(merged["images"]) + 1
            name = f"{folder.name}-{image['file_name']}"
            shutil.copyfile(folder / "images" / image["file_name"], target / "images" / name)
            merged["images"].append(image | {"id": new_ids[image["id"]], "file_name": name})
        for annotation in content["annotations"]:
            name = names[annotation["category_id"]]
            ignore = int(bool(annotation["iscrowd"] or annotation.get("difficult")))
            merged["annotations"].append({
                "id": len(merged["annotations"]) + 1, "image_id": new_ids[annotation["image_id"]],
                "category_id": ids[RENAMED.get(name, name)], "bbox": annotation["bbox"], "area": annotation["area"],
                "iscrowd": ignore,
            })  # fmt: skip
    (target / "annotations.json").write_text(json.dumps(merged))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--weights", type=Path, help="begin from this checkpoint")
    parser.add_argument("--resume", action="store_true")
    a = parser.parse_args()
    data = a.out / "data"
    if not (data / "annotations.json").is_file():
        merge([a.data / "coco-mini-train", a.data / "voc-animals-train"], data)
    config = RunConfig(
        data=data, val_data=a.data / "coco-mini-val", out=a.out / "run", weights=a.weights, teacher=a.teacher,
        model="dense", size="nano", epochs=a.epochs, image_size=a.image_size,
    )  # fmt: skip
    run(resolve(config), a.resume, teacher=YoloxNano(a.teacher, read(data).names))


if __name__ == "__main__":
    main()
