"""The same two images, in every format that other tools write: one function a layout.

Image ``a`` of 40 x 30 pixels has a cat at (4, 5, 14, 17) and a dog at (20, 10, 28, 18), image ``b`` a cat.
"""

import base64
import csv
import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from helpers.datasets import image, write_json

CAT, DOG = (4.0, 5.0, 14.0, 17.0), (20.0, 10.0, 28.0, 18.0)
OBJECTS = {"a": [("cat", CAT), ("dog", DOG)], "b": [("cat", CAT)]}


def images(folder: Path, suffix: str = ".jpg") -> None:
    for stem in OBJECTS:
        image(folder / f"{stem}{suffix}")


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def sized(box):
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def corners(box):
    x1, y1, x2, y2 = box
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def fractions(box):
    return [box[0] / 40, box[1] / 30, box[2] / 40, box[3] / 30]


def labelme(root: Path) -> None:
    images(root)
    for stem, objects in OBJECTS.items():
        shapes = [{"label": name, "points": corners(box), "shape_type": "polygon"} for name, box in objects]
        shapes[0] |= {"points": [list(CAT[2:]), list(CAT[:2])], "shape_type": "rectangle"}
        content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"..\\x\\{stem}.jpg"}
        write_json(root / f"{stem}.json", content | {"imageData": None, "imageHeight": 30, "imageWidth": 40})


def label_studio(root: Path) -> None:
    images(root / "images")
    tasks = []
    for i, (stem, objects) in enumerate(OBJECTS.items()):
        result = [{"type": "choices", "value": {"choices": ["day"]}}]
        for name, box in objects:
            x, y, w, h = (100 * part for part in sized(fractions(box)))
            value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": [name]}
            result.append({"original_width": 40, "original_height": 30, "value": value, "type": "rectanglelabels"})
        drawn = {"predictions" if i else "annotations": [{"result": result}]}
        tasks.append({"id": i, "data": {"image": f"/data/local-files/?d=images/{stem}.jpg"}, **drawn})
    write_json(root / "project.json", tasks)


def label_studio_min(root: Path) -> None:
    images(root)
    rows = []
    for stem, objects in OBJECTS.items():
        label = []
        for name, box in objects:
            x, y, w, h = (100 * part for part in sized(fractions(box)))
            value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": [name]}
            label.append(value | {"original_width": 40, "original_height": 30})
        rows.append({"image": f"/data/upload/1/{stem}.jpg", "id": 1, "label": label})
    write_json(root / "min.json", rows)


def cvat(root: Path) -> None:
    images(root / "images")
    body = "".join(f"<label><name>{name}</name></label>" for name in ("cat", "dog"))
    body = f"<version>1.1</version><meta><job><labels>{body}</labels></job></meta>"
    for stem, objects in OBJECTS.items():
        body += f'<image id="0" name="{stem}.jpg" width="40" height="30">'
        for name, (x1, y1, x2, y2) in objects:
            if name == "dog":
                points = ";".join(f"{x},{y}" for x, y in corners((x1, y1, x2, y2)))
                body += f'<polygon label="dog" points="{points}"/><points label="dog" points="1,2"/>'
            else:
                body += f'<box label="{name}" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}" occluded="0"></box>'
        body += "</image>"
    text(root / "annotations.xml", f'<?xml version="1.0" encoding="utf-8"?><annotations>{body}</annotations>')


def _via_regions(objects):
    for name, (x1, y1, x2, y2) in objects:
        shape = {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
        if name == "dog":
            shape = {"name": "polygon", "all_points_x": [x1, x2, x2], "all_points_y": [y1, y1, y2]}
        yield {"shape_attributes": shape, "region_attributes": {"class": name}}


def via(root: Path) -> None:
    images(root)
    rows = {
        f"{s}.jpg9": {"filename": f"{s}.jpg", "size": 9, "regions": list(_via_regions(o))} for s, o in OBJECTS.items()
    }
    write_json(root / "via.json", {"_via_settings": {}, "_via_img_metadata": rows, "_via_attributes": {}})


def via_csv(root: Path) -> None:
    rows = []
    for stem, objects in OBJECTS.items():
        for region in _via_regions(objects):
            shape, attributes = json.dumps(region["shape_attributes"]), json.dumps(region["region_attributes"])
            rows.append([f"{stem}.jpg", 9, "{}", len(objects), 0, shape, attributes])
    header = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    _table(root / "via_export.csv", rows, header)


def _table(path: Path, rows: list, header: str = "") -> None:
    images(path.parent)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header.split(",")] * bool(header) + rows)
    text(path, out.getvalue())


def _each():
    for stem, objects in OBJECTS.items():
        for name, box in objects:
            yield stem, name, box


def roboflow_csv(root: Path) -> None:
    rows = [[f"{s}.jpg", 40, 30, name, *map(int, box)] for s, name, box in _each()]
    _table(root / "train" / "_annotations.csv", rows, "filename,width,height,class,xmin,ymin,xmax,ymax")


def retinanet_csv(root: Path) -> None:
    image(root / "empty.jpg")
    rows = [[f"{s}.jpg", *map(int, box), name] for s, name, box in _each()]
    _table(root / "annotations.csv", [*rows, ["empty.jpg", "", "", "", "", ""]])
    text(root / "classes.csv", "cat,0\ndog,1\n")


def kaggle_csv(root: Path) -> None:
    rows = [[s, 40, 30, str(sized(box)), name] for s, name, box in _each()]
    _table(root / "train.csv", rows, "image_id,width,height,bbox,class_name")


def open_images_csv(root: Path) -> None:
    ids = {"cat": "/m/01", "dog": "/m/02"}
    rows = []
    for stem, name, box in _each():
        x1, y1, x2, y2 = fractions(box)
        rows.append([stem, "xclick", ids[name], 1, x1, x2, y1, y2, 0, 0, 0, 0, 0])
    header = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    _table(root / "train-annotations-bbox.csv", rows, header)
    text(root / "class-descriptions-boxable.csv", "/m/02,dog\n/m/01,cat\n")


def makesense_csv(root: Path) -> None:
    _table(root / "labels.csv", [[name, *map(int, sized(box)), f"{s}.jpg", 40, 30] for s, name, box in _each()])


def automl_csv(root: Path) -> None:
    rows = []
    for stem, name, box in _each():
        x1, y1, x2, y2 = fractions(box)
        rows.append(["TRAIN", f"gs://bucket/{stem}.jpg", name, x1, y1, "", "", x2, y2, "", ""])
    _table(root / "import.csv", rows)


def createml(root: Path) -> None:
    images(root / "train")
    rows = []
    for stem, objects in OBJECTS.items():
        marked = [
            {"label": n, "coordinates": {"x": (b[0] + b[2]) / 2, "y": (b[1] + b[3]) / 2, "width": w, "height": h}}
            for n, b in objects
            for _, _, w, h in [sized(b)]
        ]
        rows.append({"image": f"{stem}.jpg", "annotations": marked})
    write_json(root / "train" / "_annotations.createml.json", rows)


def huggingface(root: Path) -> None:
    images(root / "train")
    text(root / "train" / "metadata.jsonl", _metadata())


def huggingface_packed(root: Path) -> None:
    images(root / "train")
    (root / "train" / "metadata.jsonl.gz").write_bytes(gzip.compress(_metadata().encode()))


def _metadata() -> str:
    rows = []
    for stem, objects in OBJECTS.items():
        content = {"bbox": [sized(box) for _, box in objects], "categories": [name for name, _ in objects]}
        rows.append(json.dumps({"file_name": f"{stem}.jpg", "objects": content}) + "\n")
    return "".join(rows)


def kitti(root: Path) -> None:
    images(root / "training" / "image_2", ".png")
    images(root / "training" / "image_3", ".png")
    for stem, objects in OBJECTS.items():
        rows = [f"{n} 0.00 0 -1.6 {' '.join(f'{v:.2f}' for v in b)} 1 1 1 1 1 1 -1.5\n" for n, b in objects]
        rows.append("DontCare -1 -1 -10 5.0 5.0 9.0 9.0 -1 -1 -1 -1000 -1000 -1000 -10\n")
        text(root / "training" / "label_2" / f"{stem}.txt", "".join(rows))


def supervisely(root: Path) -> None:
    images(root / "ds0" / "img")
    write_json(root / "meta.json", {"classes": [{"title": "cat", "shape": "rectangle"}], "tags": []})
    for stem, objects in OBJECTS.items():
        figures = []
        for name, box in objects:
            figure = {"classTitle": name, "geometryType": "rectangle"}
            if name == "dog":
                png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 8, 8)
                bitmap = {"data": base64.b64encode(zlib.compress(png)).decode(), "origin": [20, 10]}
                figures.append(figure | {"geometryType": "bitmap", "bitmap": bitmap})
            else:
                figures.append(figure | {"points": {"exterior": [list(box[:2]), list(box[2:])], "interior": []}})
        content = {"description": "", "tags": [], "size": {"height": 30, "width": 40}, "objects": figures}
        write_json(root / "ds0" / "ann" / f"{stem}.jpg.json", content)


def datumaro(root: Path) -> None:
    images(root / "images" / "train")
    items = []
    for stem, objects in OBJECTS.items():
        rows = [{"id": 0, "type": "bbox", "label_id": ["cat", "dog"].index(n), "bbox": sized(b)} for n, b in objects]
        items.append({"id": stem, "annotations": rows, "image": {"path": f"{stem}.jpg", "size": [30, 40]}})
    labels = {"labels": [{"name": name, "parent": "", "attributes": []} for name in ("cat", "dog")]}
    write_json(root / "annotations" / "train.json", {"info": {}, "categories": {"label": labels}, "items": items})


def fiftyone(root: Path) -> None:
    images(root / "data")
    samples = []
    for stem, objects in OBJECTS.items():
        found = [{"label": n, "bounding_box": sized(fractions(b))} for n, b in objects]
        field = {"_cls": "Detections", "detections": found}
        samples.append({"filepath": f"data/{stem}.jpg", "tags": ["train"], "ground_truth": field})
    write_json(root / "metadata.json", {"name": "x", "media_type": "image"})
    write_json(root / "samples.json", {"samples": samples})


def fiftyone_labels(root: Path) -> None:
    images(root / "data")
    classes = ["cat", "dog"]
    labels = {
        stem: [{"label": classes.index(n), "bounding_box": sized(fractions(b))} for n, b in objects]
        for stem, objects in OBJECTS.items()
    }
    write_json(root / "labels.json", {"classes": classes, "labels": labels})


def bdd100k(root: Path) -> None:
    images(root / "images" / "100k" / "train")
    frames = []
    for stem, objects in OBJECTS.items():
        labels = [{"category": n, "box2d": dict(zip(("x1", "y1", "x2", "y2"), b, strict=True))} for n, b in objects]
        frames.append({"name": f"{stem}.jpg", "labels": [*labels, {"category": "lane", "poly2d": []}]})
    write_json(root / "labels" / "bdd100k_labels_images_train.json", frames)


def bdd100k_per_image(root: Path) -> None:
    images(root / "images" / "train")
    for stem, objects in OBJECTS.items():
        found = [{"category": n, "box2d": dict(zip(("x1", "y1", "x2", "y2"), b, strict=True))} for n, b in objects]
        write_json(
            root / "labels" / "train" / f"{stem}.json", {"name": stem, "frames": [{"timestamp": 1, "objects": found}]}
        )


def coco_per_image(root: Path) -> None:
    images(root / "images")
    for i, (stem, objects) in enumerate(OBJECTS.items()):
        ids = {"cat": 1 + i, "dog": 2 - i}  # numbered otherwise in each file
        rows = [{"id": k, "image_id": 5, "category_id": ids[n], "bbox": sized(b)} for k, (n, b) in enumerate(objects)]
        content = {"images": [{"id": 5, "file_name": f"{stem}.jpg", "width": 40, "height": 30}], "annotations": rows}
        categories = [{"id": id_, "name": name} for name, id_ in ids.items()] if i == 0 else [{"id": 2, "name": "cat"}]
        write_json(root / "annotations" / f"{stem}.json", content | {"categories": categories})


def coco_segments(root: Path) -> None:
    images(root / "images")
    rows = []
    for name, image_id, segmentation in (
        ("cat", 1, [[4, 5, 14, 5, 14, 17], [4, 5, 4, 17, 5, 17]]),
        ("dog", 1, {"size": [30, 40], "counts": [610] + [8, 22] * 7 + [8, 372]}),
        ("cat", 2, {"size": [30, 40], "counts": [125] + [12, 18] * 9 + [12, 793]}),
    ):
        id_ = ["cat", "dog"].index(name)
        rows.append({"id": len(rows), "image_id": image_id, "category_id": id_, "segmentation": segmentation})
    names = [{"id": i, "file_name": f"{stem}.jpg"} for i, stem in enumerate(OBJECTS, 1)]
    categories = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog"))]
    write_json(root / "annotations.json", {"images": names, "annotations": rows, "categories": categories})


def _yolo_rows(objects) -> str:
    rows = []
    for name, box in objects:
        x, y, w, h = sized(fractions(box))
        rows.append(f"{['cat', 'dog'].index(name)} {x + w / 2:.9f} {y + h / 2:.9f} {w:.9f} {h:.9f}\n")
    return "".join(rows)


def yolo_classes(root: Path) -> None:
    images(root / "images" / "train")
    for stem, objects in OBJECTS.items():
        text(root / "labels" / "train" / f"{stem}.txt", _yolo_rows(objects))
    text(root / "classes.txt", "cat\ndog\n")


def yolo_beside(root: Path) -> None:
    images(root)
    for stem, objects in OBJECTS.items():
        text(root / f"{stem}.txt", _yolo_rows(objects))
    text(root / "classes.txt", "cat\ndog\n")


def darknet(root: Path) -> None:
    images(root / "obj_train_data", ".PNG")
    for stem, objects in OBJECTS.items():
        text(root / "obj_train_data" / f"{stem}.txt", _yolo_rows(objects))
    text(root / "train.txt", "data/obj_train_data/a.PNG\ndata/obj_train_data/b.PNG\n")
    text(root / "obj.names", "cat\ndog\n")
    text(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")


# With class lists of their own.


def crowdhuman(root: Path) -> None:
    images(root / "Images")
    rows = []
    for stem, objects in OBJECTS.items():
        people = [
            {"tag": "mask" if n == "dog" else "person", "fbox": sized(b), "hbox": [1, 1, 2, 2]} for n, b in objects
        ]
        rows.append(json.dumps({"ID": stem, "gtboxes": people}) + "\n")
    text(root / "annotation_train.odgt", "".join(rows))


def visdrone(root: Path) -> None:
    images(root / "VisDrone2019-DET-train" / "images")
    for stem, objects in OBJECTS.items():
        rows = [",".join(map(str, [*map(int, sized(b)), int(n == "cat"), 4, 0, 0])) + "\n" for n, b in objects]
        folder = root / "VisDrone2019-DET-train" / "annotations"
        text(folder / f"{stem}.txt", "".join(rows) + "1,1,5,5,0,0,0,0\n")


def wider(root: Path) -> None:
    images(root / "WIDER_train" / "images" / "0--Parade")
    image(root / "WIDER_train" / "images" / "0--Parade" / "none.jpg")
    rows = ["0--Parade/none.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n"]
    for stem, objects in OBJECTS.items():
        rows.append(f"0--Parade/{stem}.jpg\n{len(objects)}\n")
        for name, box in objects:
            rows.append(" ".join(map(str, [*map(int, sized(box)), 0, 0, 0, int(name == "dog"), 0, 0])) + "\n")
    text(root / "wider_face_split" / "wider_face_train_bbx_gt.txt", "".join(rows))


TWO_CLASSES: dict[Callable[[Path], None], str] = {
    labelme: "all", label_studio: "all", label_studio_min: "all", cvat: "all", via: "all", via_csv: "all",
    roboflow_csv: "train", retinanet_csv: "all", kaggle_csv: "train", open_images_csv: "train", makesense_csv: "all",
    automl_csv: "train", createml: "train", huggingface: "train", huggingface_packed: "train", kitti: "train",
    supervisely: "all", datumaro: "train", fiftyone: "train", fiftyone_labels: "all", bdd100k: "train",
    bdd100k_per_image: "train", coco_per_image: "all", coco_segments: "all", yolo_classes: "train", yolo_beside: "all",
    darknet: "train",
}  # fmt: skip
ONE_CLASS: dict[Callable[[Path], None], tuple[str, str]] = {
    crowdhuman: ("train", "person"), visdrone: ("train", "car"), wider: ("train", "face"),
}  # fmt: skip
