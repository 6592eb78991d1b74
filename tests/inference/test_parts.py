"""Parts of a call: together they are what one process finds, each is whole or absent, and none is done twice."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.config import UserError
from boxwright.inference import job as module
from boxwright.inference.merge_results import merge_results
from boxwright.inference.parts import Part
from boxwright.inference.predict import predict
from boxwright.inference.ray_engine import connect, divide

SIZE, BOX = (64, 48), (10, 10, 40, 30)
RESULTS = ("predictions.json", "predictions.csv")


@pytest.fixture
def shots(paint: Callable[..., Path], tmp_path: Path) -> Path:
    """Nine images, one of which cannot be read."""
    for n in range(8):
        paint(tmp_path / "shots" / f"{n}.png", SIZE, BOX if n % 3 else None)
    (tmp_path / "shots" / "5 broken.png").write_bytes(b"no image")
    return tmp_path / "shots"


class Ray:
    """Ray's `init`, which refuses as it does what belongs to a cluster of this machine alone."""

    def __init__(self) -> None:
        self.data = SimpleNamespace(DataContext=SimpleNamespace(get_current=SimpleNamespace))
        self.address = ""

    def init(self, address: str, object_store_memory: int | None = None, **_: object) -> None:
        """Join a cluster, or start one."""
        if address != "local" and object_store_memory is not None:
            raise ValueError("When connecting to an existing cluster, object_store_memory must not be provided.")
        if address == "slow":
            raise Exception("The current node timed out during startup.")  # as Ray does
        self.address = address


@pytest.mark.parametrize(("address", "variable"), [(None, None), (None, "head:1"), ("auto", "head:1")])
def test_the_address_is_the_options_or_that_of_the_environment(monkeypatch, address, variable):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    ray = Ray()
    connect(ray, address)
    assert ray.address == (address or variable or "local")


def test_whatever_stops_ray_is_one_line():
    with pytest.raises(UserError, match=r"there is no Ray cluster at slow: .* timed out during startup"):
        connect(Ray(), "slow")


@given(st.integers(0, 500), st.integers(1, 20), st.integers(1, 40))
def test_parts_hold_each_image_once_in_whole_batches(images, batch_size, count):
    slices = [Part(number, count).positions(images, batch_size) for number in range(1, count + 1)]
    assert [i for part in slices for i in range(images)[part]] == list(range(images))
    assert all(part.start % batch_size == 0 for part in slices if part.start < images)


@given(st.integers(1, 100_000), st.integers(1, 64))
def test_a_cluster_gets_enough_parts_of_no_more_than_a_thousand_images_and_a_batch(images, batch_size):
    parts = divide(images, batch_size)
    sizes = [part.positions(images, batch_size) for part in parts]
    assert max(part.stop - part.start for part in sizes) <= 1000 + batch_size
    assert all(part.stop > part.start for part in sizes)


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_parts_are_joined_to_what_one_process_writes(shots, weights, tmp_path, count):
    whole = predict(weights, shots, tmp_path / "whole", batch_size=2, parquet=True)
    for number in range(count, 0, -1):
        predict(weights, shots, tmp_path / "out", batch_size=2, part=f"{number}/{count}")
    merged = merge_results(tmp_path / "out", parquet=True)
    assert (merged.images, merged.objects, merged.exit_code) == (whole.images, whole.objects, 1)
    assert [str(error) for error in merged.skipped] == [str(error) for error in whole.skipped]
    for name in (*RESULTS, "predictions.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 8


def test_parquet_says_what_the_table_says(shots, weights, tmp_path):
    from pyarrow.parquet import read_table

    predict(weights, shots, tmp_path / "out", parquet=True)
    rows = read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        expected = [tuple(row.values()) for row in csv.DictReader(file)]
    found = [
        (row["file"], label, str(score), *map(str, box))
        for row in rows
        for label, score, box in zip(row["labels"], row["scores"], row["boxes"], strict=True)
    ]
    assert found == expected
    assert len(rows) == 8
    assert {(row["width"], row["height"]) for row in rows} == {SIZE}


def test_a_part_that_is_done_is_not_done_again(shots, weights, tmp_path, monkeypatch, capsys):
    first = predict(weights, shots, tmp_path / "out", part="1/2")
    monkeypatch.setattr(module.Worker, "do", None)
    again = predict(weights, shots, tmp_path / "out", part="1/2")
    assert (again.images, again.objects) == (first.images, first.objects)
    assert "was done before" in capsys.readouterr().out


def test_a_part_whose_results_are_damaged_is_done_again(shots, weights, tmp_path):
    out = tmp_path / "out"
    predict(weights, shots, out, part="1/1")
    file = out / "parts" / "1-of-1.jsonl"
    good = file.read_bytes()
    file.write_bytes(good[:-2])
    with pytest.raises(UserError, match=r"1-of-1.jsonl is damaged or gone; .* --part 1/1"):
        merge_results(out)
    predict(weights, shots, out, part="1/1")
    assert file.read_bytes() == good


def test_parts_of_other_calls_are_not_mixed(shots, weights, tmp_path, paint):
    out = tmp_path / "out"
    predict(weights, shots, out, part="1/2")
    for other, what in (({"part": "1/3"}, "parts 2, now 3"), ({"threshold": 0.3}, "threshold None, now 0.3"),
                        ({"batch_size": 3}, "batch size"), ({"classes": "box"}, "classes")):  # fmt: skip
        with pytest.raises(UserError, match=f"parts of another call .*{what}.*give another --out"):
            predict(weights, shots, out, **{"part": "2/2"} | other)
    weights.write_bytes(b"others")
    with pytest.raises(UserError, match="weights"):
        predict(weights, shots, out, part="2/2")
    weights.write_bytes(b"weights")
    paint(shots / "new.png", SIZE, BOX)
    with pytest.raises(UserError, match="images 9, now 10"):
        predict(weights, shots, out, part="2/2")


def test_missing_parts_are_named_and_nothing_is_written(shots, weights, tmp_path):
    out = tmp_path / "out"
    for number in (1, 3):
        predict(weights, shots, out, part=f"{number}/4", overlays=False)
    with pytest.raises(UserError, match=r"lacks 2, 4 of 4 parts; .* --part 2/4"):
        merge_results(out)
    assert [path.name for path in out.iterdir()] == ["parts"]


def test_a_killed_part_leaves_nothing_that_counts(shots, weights, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict(weights, shots, tmp_path / "out", part="1/1")
    with pytest.raises(UserError, match="has no parts"):
        merge_results(tmp_path / "out")


def test_a_damaged_manifest_is_named(shots, weights, tmp_path):
    predict(weights, shots, tmp_path / "out", part="1/1")
    manifest = tmp_path / "out" / "parts" / "1-of-1.json"
    for content in ("{", "[]", json.dumps(json.loads(manifest.read_text()) | {"number": 7})):
        manifest.write_text(content)
        with pytest.raises(UserError, match=r"1-of-1.json is damaged"):
            merge_results(tmp_path / "out")


@pytest.mark.parametrize("part", ["0/4", "5/4", "1/0", "-1/4", "1", "1/2/3", "a/b", "1.5/2", "", "1 / 2", "１/２"])
def test_what_is_no_part(shots, weights, tmp_path, part):
    with pytest.raises(UserError, match="--part"):
        predict(weights, shots, tmp_path / "out", part=part)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "clip.mp4", "part": "1/2"}, "is a video, which has no parts"),
        ({"engine": "ray", "part": "1/2"}, "divides the images by itself"),
        ({"address": "auto"}, "give --engine ray"),
        ({"part": "1/2", "parquet": True}, "merge-results"),
    ],
)
def test_arguments_that_exclude_each_other(shots, weights, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        predict(weights, **{"source": shots, "out": tmp_path / "out"} | arguments)
