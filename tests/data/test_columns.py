"""Large data sets: columns and streams give what lists and whole files give."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.data import id_column, json_stream
from boxwright.data.box_faults import alike_pairs
from boxwright.data.columns import take
from boxwright.data.folders import real_paths
from boxwright.data.id_column import IdColumn
from boxwright.data.json_stream import JsonStream
from boxwright.data.parsed import to_dataset
from boxwright.data.read import merge_val, parse, read
from boxwright.inspection.check import check
from helpers.datasets import coco, coco_content, image, write_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def pairwise_iou(boxes_N4: np.ndarray) -> np.ndarray:
    corner = np.minimum(boxes_N4[:, None, 2:], boxes_N4[:, 2:]) - np.maximum(boxes_N4[:, None, :2], boxes_N4[:, :2])
    shared = corner.clip(0).prod(-1)
    area = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(-1)
    return shared / (area[:, None] + area - shared)


@pytest.mark.parametrize("seed", range(8))
def test_alike_boxes_are_those_of_all_pairs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    corners = draw.integers(0, 12, (120, 2)).astype(float)
    boxes_N4 = np.concatenate([corners, corners + draw.integers(1, 25, (120, 2))], 1)
    boxes_N4[60:] = boxes_N4[draw.integers(0, 60, 60)] + draw.uniform(0, 0.3, (60, 4))
    groups_N = draw.integers(0, 3, 120)
    alike_NN = (pairwise_iou(boxes_N4) >= 0.9) & (groups_N[:, None] == groups_N)
    expected = {int(j) for _, j in zip(*np.nonzero(np.triu(alike_NN, 1)), strict=True)}
    pairs = alike_pairs(boxes_N4, groups_N, 0.9)
    assert {j for _, j, _ in pairs} == expected
    assert len(pairs) == len(expected) > 10
    for i, j, iou in pairs:
        assert i < j
        assert alike_NN[i, j]
        assert iou == pytest.approx(pairwise_iou(boxes_N4[[i, j]])[0, 1])


@pytest.mark.parametrize("same", [False, True])
def test_a_crowd_on_one_image_takes_little_memory(tmp_path: Path, same: bool) -> None:
    image(tmp_path / "images" / "001.jpg")
    draw = np.random.default_rng(0)
    boxes = [[1, 2, 10, 12]] * 5_000 if same else np.c_[draw.uniform(0, 20, (5_000, 2)), draw.uniform(5, 9, (5_000, 2))]
    content = coco_content(1)
    content["annotations"] = [
        {"id": k, "image_id": 1, "category_id": 3, "bbox": list(box)} for k, box in enumerate(boxes)
    ]
    write_json(tmp_path / "annotations.json", content)
    tracemalloc.start()
    report = check(tmp_path, json=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # 4,999 faults are most of it; all pairs would take a gigabyte
    assert (sum(fault.kind == "duplicate-box" for fault in report.faults) == 4_999) == same


@given(st.dictionaries(st.text(max_size=4), st.lists(VALUES, max_size=4) | VALUES, max_size=4), st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_a_stream_gives_what_the_whole_file_gives(tmp_path_factory, content: dict, block: int) -> None:
    file = tmp_path_factory.mktemp("json") / "a.json"
    file.write_text(json.dumps(content, indent=block % 3 or None, ensure_ascii=block % 2 > 0), encoding="utf-8-sig")
    before, json_stream._BLOCK = json_stream._BLOCK, block
    try:
        with JsonStream(file) as stream:
            found = {key: list(stream.items()) if stream.is_array() else stream.value() for key in stream.keys()}  # noqa: SIM118
    finally:
        json_stream._BLOCK = before
    assert found == content


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 1', '{"a" 1}', '{"a": [1 2]}', '{"a": [1,]}', "{} {}", '{"a": }']
)
def test_a_stream_of_no_json_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with JsonStream(tmp_path / "a.json") as stream, pytest.raises(ValueError):  # noqa: PT011, PT012
        for _ in stream.keys():  # noqa: SIM118
            list(stream.items()) if stream.is_array() else stream.value()


def test_ids_of_any_type() -> None:
    column = IdColumn()
    for id_ in (7, "7", 8.0, "x", [1], 10**30, 7, "x", None, True):
        column.append(id_)
    assert [column[i] for i in range(len(column))] == [7, "7", 8.0, "x", [1], 10**30, 7, "x", None, True]
    assert column.positions_in(IdColumn([7, 8, "x"])).tolist() == [0, 0, 1, 2, -1, -1, 0, 2, -1, -1]
    assert column.positions_in(IdColumn(["7", 8.0])).tolist() == [0, 0, 1, -1, -1, -1, 0, -1, -1, -1]
    assert dict(column.repeated()) == {7: 2, "x": 2}


@pytest.mark.parametrize("ids", [[], [5, 3, 5, 9, 3, 5], [5, "3", 5.0, 9, "3", 5], [2**40, 1, 2**40]])
def test_each_repeated_id_is_known_by_its_first_row(ids: list) -> None:
    expected = {row: ids.index(id_) for row, id_ in enumerate(ids) if ids.index(id_) < row}
    assert IdColumn(ids).repeats() == expected
    assert list(IdColumn(ids).repeats()) == sorted(expected)  # faults come in the order of the file


def test_many_ids_are_found_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_column, "_TOGETHER", 7)
    generator = np.random.default_rng(0)
    known, wanted = generator.permutation(60)[:40].tolist(), generator.integers(-5, 70, 100).tolist()
    expected = [known.index(id_) if id_ in known else -1 for id_ in wanted]
    assert IdColumn(wanted).positions_in(IdColumn(known)).tolist() == expected
    assert IdColumn(wanted).positions_in(IdColumn()).tolist() == [-1] * 100


def test_of_images_with_one_id_the_first_is_kept(tmp_path: Path) -> None:
    content = coco_content(4)
    content["images"][2]["id"] = content["images"][0]["id"]
    parsed = parse(coco(tmp_path, content))
    (images,) = parsed.splits.values()
    assert [image.path.name for image in images] == [content["images"][i]["file_name"] for i in (0, 1, 3)]
    assert [image.image_id for image in images] == [content["images"][i]["id"] for i in (0, 1, 3)]
    assert "duplicate-id" in {fault.kind for fault in parsed.faults}


def test_annotations_in_any_order_are_those_of_their_images(tmp_path: Path) -> None:
    content = coco_content(5)
    ordered = read(coco(tmp_path / "a", content)).splits["all"]
    content["annotations"].reverse()
    mixed = read(coco(tmp_path / "b", content)).splits["all"]
    for one, other in zip(ordered, mixed, strict=True):
        assert one.image_id == other.image_id
        rows = [sorted(zip(r.labels_N.tolist(), r.boxes_N4.tolist(), strict=True)) for r in (one, other)]
        assert rows[0] == rows[1]
    (parsed,) = parse(tmp_path / "b").splits.values()
    assert all(image.where(k).endswith(f" {mark}") for image in parsed for k, mark in enumerate(image.marks))


def test_records_are_a_sequence(tmp_path: Path) -> None:
    records = read(coco(tmp_path, coco_content(5))).splits["all"]
    assert len(records) == 5
    assert [r.image_id for r in records[1:3]] == [2, 3]
    assert records[-1].image_id == 5
    with pytest.raises(IndexError):
        records[5]
    assert [r.image_id for r in take(records, np.array([True, False, False, True, False]))] == [1, 4]
    assert (records[0].labels_N.dtype, records[0].boxes_N4.dtype) == (np.int64, np.float64)
    assert isinstance(records[0].width, int)


def test_classes_of_a_second_data_set_are_matched_by_name(tmp_path: Path) -> None:
    other = coco_content(2)
    other["categories"] = [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}]
    merged = merge_val(read(coco(tmp_path / "a")), read(coco(tmp_path / "b", other)))
    assert [merged.names[label] for label in merged.splits["val"][0].labels_N] == ["dog", "cat"]


def test_boxes_that_no_record_keeps_are_counted(tmp_path: Path) -> None:
    content = coco_content(3)
    content["annotations"][1]["bbox"] = [4, 5, 0, 3]
    content["annotations"][2]["bbox"] = [float("nan"), 5, 2, 3]
    parsed = parse(coco(tmp_path, content))
    dataset, dropped = to_dataset(parsed)
    assert (dropped, [len(r.labels_N) for r in dataset.splits["all"]]) == (2, [2, 0, 0])
    dataset, dropped = to_dataset(parsed, empty_boxes=True)
    assert (dropped, [len(r.labels_N) for r in dataset.splits["all"]]) == (1, [2, 1, 0])


def test_real_paths_follow_links(tmp_path: Path) -> None:
    image(tmp_path / "real" / "a.jpg")
    (tmp_path / "real" / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "linked").symlink_to("real")
    paths = [
        f"{tmp_path}/{name}" for name in ("real/a.jpg", "real/b.jpg", "linked/a.jpg", "linked/b.jpg", "none/c.jpg")
    ]
    assert list(real_paths(paths)) == [str(Path(path).resolve()) for path in paths]


def test_a_list_that_is_there_twice_counts_as_the_last_one(tmp_path: Path) -> None:
    text = json.dumps(coco_content(2))
    coco(tmp_path, coco_content(2))
    (tmp_path / "annotations.json").write_text(
        text.replace('{"images":', '{"images": [], "annotations": [], "images":', 1)
    )
    assert [len(record.labels_N) for record in read(tmp_path).splits["all"]] == [2, 1]
