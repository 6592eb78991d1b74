"""What stands on each generated page, tag by tag, as it did when it was last agreed on (`tests/golden/pages`)."""

import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import boxwright
from boxwright.comparison import report as comparison
from boxwright.comparison.row import Row
from boxwright.comparison.settings import SharedSettings
from boxwright.data.cache import build
from boxwright.data.records import Record
from boxwright.evaluation import report as evaluation
from boxwright.evaluation.coco import STAT_NAMES, score
from boxwright.evaluation.thresholds import Choice
from boxwright.explanation import query_page, sequence_page
from boxwright.explanation.attention_maps import CellMap, PointMap, RecordedPass
from boxwright.explanation.copied_proposals import CopyTrace
from boxwright.explanation.generation_trace import GenerationTrace
from boxwright.thresholds import Thresholds
from boxwright.types import Detections

GOLDEN = Path(__file__).parents[1] / "golden" / "pages"
CLASSES = ("cat", "<dog>", 'gnu & "yak"')


class Outline(HTMLParser):
    """A page as text: a line for each tag, with the text behind it; whitespace is folded, images and style left out."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.lines, self.depth, self.opened = [""], 0, ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = [f' {name}="{re.sub("base64,.*", "base64,...", value or "")}"' for name, value in attrs]
        self.lines.append(f"{' ' * self.depth}<{tag}{''.join(values)}>")
        self.opened = tag
        self.depth += tag not in ("meta", "img", "input")

    def handle_endtag(self, tag: str) -> None:
        self.depth, self.opened = self.depth - 1, ""

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if not text or self.opened == "style":
            return
        if self.opened:
            self.lines[-1] += text
        else:
            self.lines.append(" " * self.depth + text)
        self.opened = ""


def check(page: Path, name: str) -> None:
    """The page is the golden one; if it is meant to be another, copy what is written beside it."""
    content = page.read_text(encoding="utf-8")
    assert f"<footer><p>boxwright {boxwright.__version__}, 20" in content
    text = "\n".join(Outline(content.partition("<footer>")[0]).lines[1:]) + "\n"
    page.with_suffix(".txt").write_text(text, encoding="utf-8")
    assert text == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8"), f"see {page.with_suffix('.txt')}"


def shares(*shape: int) -> np.ndarray:
    """Numbers that are 1 in sum over the last axis, the same on every machine."""
    rising = np.arange(np.prod(shape)) * 7 % 11 % 8 + 0.25
    return rising.reshape(shape) / rising.reshape(shape).sum(-1, keepdims=True)


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


def record(path: Path, objects: int) -> Record:
    """The first of two objects, in an image of 60 x 40 pixels."""
    boxes_N4, labels_N = np.array([[5.0, 5, 25, 25], [10, 10, 40, 30]]), np.array([0, 2])
    return Record(path, 60, 40, boxes_N4[:objects], labels_N[:objects], np.zeros(objects, bool), 7, "x")


def found() -> Detections:
    boxes_N4 = np.array([[5, 5, 25, 25], [10, 10, 40, 30]], np.float32)
    return Detections(boxes_N4, np.array([0.9, 0.5], np.float32), np.array([0, 1]), CLASSES)


def test_evaluation(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    photo().save(tmp_path / "b.jpg")
    charts, pictures = [("A & B", tmp_path / "a.png")], [("<b>", tmp_path / "b.jpg")] * 2
    records = [record(tmp_path / "a.png", n) for n in (2, 1, 0)]
    report = score(records, [found(), found(), found()], CLASSES)
    choice = Choice(Thresholds(0.25, {CLASSES[1]: 0.5}, "<3> images"), Thresholds(0.5, {CLASSES[0]: 0.75}, "a & b"))
    notes = ["100 % & more", "x"]
    evaluation.write_page(tmp_path / "page.html", "A < B", report, choice, pictures, notes, charts, tmp_path / "a.png")
    check(tmp_path / "page.html", "evaluation")


def test_comparison(paint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {"latency_ms": 1234.5, "detection_mib": 2000.4, "training_mib": 950.0, "parameters": 3_140_000}
    stats = dict(zip(STAT_NAMES, (0.5, 0.75, 0.25, -1, 0.125, 0.5, *[0.5] * 6), strict=True))
    aps = dict(zip(CLASSES, (0.5, -1, 0.25), strict=True))
    rows = [Row("dense", stats | {"ECE": 0.0625}, [0.5] * 10, [(60, 0.25), (90, 0.5)], 2, cost, aps)]
    rows.append(Row("detr", stats | {"AP": 0.25}, [0.25] * 10, [(60, 0.125), (120, 0.25)], 1, cost, aps))
    records = [record(paint(tmp_path / f"a <{n}>.png", (60, 40), (5, 5, 25, 25)), n) for n in (2, 0, 1)]
    settings = SharedSettings("/data/<cells>", None, 0.2, None, None, "nano", 64, {}, 1.5, None, 0, "cpu")
    cache = build(records, 64, folder=tmp_path / "cache", quiet=True)
    monkeypatch.setattr(comparison, "_found", lambda weights, device, cache, positions: [found() for _ in positions])
    advice, failed = ["Take dense & go.", "It is <fast>."], {"pix2seq": "out of <memory>."}
    comparison.write_report(tmp_path, settings, rows, advice, failed, "cpu & co", cache, records, CLASSES)
    check(tmp_path / "index.html", "comparison")


def trace(n: int) -> GenerationTrace:
    """The first `n` of three objects; the vocabulary holds 9 coordinates (ids 10 to 18), 3 classes and noise."""
    names = [f"#{token}" for token in range(24)]
    names[10:19], names[20:24] = [str(bin) for bin in range(9)], [*CLASSES, "noise"]
    tokens_N5 = np.array([[10, 12, 14, 16, 21], [11, 11, 17, 18, 22], [15, 12, 18, 13, 23]])
    allowed_N5V = np.zeros((3, 5, 24), bool)
    allowed_N5V[:, :4, 10:19] = allowed_N5V[:, 4, 20:] = True
    return GenerationTrace(
        tokens_N5=tokens_N5[:n],
        probabilities_N5V=shares(3, 5, 24)[:n],
        allowed_N5V=allowed_N5V[:n],
        coordinates_N4R=shares(3, 4, 9)[:n],
        corners_N4=(tokens_N5[:n, :4] - 10) / 8,
        attention_N5HW=shares(3, 5, 16).reshape(3, 5, 4, 4)[:n],
        valid_2=(0.6666, 1.0),
        end=0.625 if n else None,
        found=Detections(
            np.array([[15, 0, 45, 30], [8, 8, 60, 40], [15, 40, 23, 60]], np.float32)[:n],
            np.array([0.75, 0.25, 0.5], np.float32)[:n], np.array([1, 2, 0])[:n], CLASSES,
        ),
        token_names=names,
    )  # fmt: skip


@pytest.mark.parametrize(("n", "name"), [(3, "sequence"), (0, "sequence-empty")])
def test_sequence(n: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_page, "BEST", 2)
    sequence_page.write_page(tmp_path / "page.html", "<a>, explained", photo(), trace(n), "x & y on z.")
    check(tmp_path / "page.html", name)


def test_a_copied_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_page, "BEST", 2)
    copied = trace(3)
    boxes_C4 = np.array([[0.1, 0.1, 0.6, 0.4], [0.2, 0.2, 1.0, 0.6], [0.0, 0.3, 0.3, 0.7]])
    copied.copied = CopyTrace(boxes_C4, shares(3), np.array([1, 2, 0]), boxes_C4 / 2, shares(3, 5, 4))
    copied.copied.weights_N5X[0, 4] = [0.03, 0.01, 0.2, 0.76]
    sequence_page.write_page(tmp_path / "page.html", "<a>, explained", photo(), copied, "x & y on z.")
    check(tmp_path / "page.html", "sequence-copied")


def queries(kind: str) -> RecordedPass:
    """Two layers and four queries, which attend with four heads to one map or two."""
    shapes = [(4, 6)] if kind == "cells" else [(4, 6), (2, 3)]
    scores_LQK, boxes_LQ4 = shares(2, 4, 3), shares(2, 4, 4).cumsum(-1)
    recorded = RecordedPass(scores_LQK, boxes_LQ4, CLASSES, shapes, [None], [None, None])  # type: ignore[list-item]

    def maps(call: object, rows: Sequence[int]) -> list[CellMap] | list[PointMap]:
        if kind == "cells":
            return [CellMap(np.roll(shares(4, 24), n).reshape(4, 4, 6)) for n in rows]
        points_HVP2, weights_HVP = shares(4, 2, 3, 2) * 1.5 - 0.25, shares(4, 6).reshape(4, 2, 3)
        return [PointMap(points_HVP2, np.roll(weights_HVP, n)) for n in rows]

    recorded._maps = maps  # type: ignore[method-assign,assignment]
    return recorded


@pytest.mark.parametrize("kind", ["cells", "points"])
def test_queries(kind: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    query_page.write_page(page, "<a>, explained", photo(), queries(kind), "x & y on z.", [2, 0], (0.5, 0.25))
    check(page, f"queries-{kind}")


def test_a_pixel_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    query_page.write_page(page, "<a>, explained", photo(), queries("points"), "", [], (0.5, 0.25))
    check(page, "pixel")
