"""The page of `explain`: all tokens are on it, it needs no other file, and detectors that have none are refused."""

import re
from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest
from PIL import Image

from boxwright.__main__ import main
from boxwright.checkpoints.detector_file import load_detector, save_detector
from boxwright.config import UserError
from boxwright.explanation.attention_maps import record_pass
from boxwright.explanation.explain import explain
from boxwright.explanation.generation_trace import GenerationTrace, trace_generation
from boxwright.explanation.sequence_page import write_page
from boxwright.images import open_image
from boxwright.inference.predictor import to_batch
from boxwright.models import registry
from boxwright.models.patchseq import PatchSeq, PatchSeqConfig
from boxwright.models.pix2seq import Pix2Seq
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.runtime.inputs import DecodedImage
from helpers.query_detectors import small_query_detector


@pytest.fixture
def weights(pix2seq: Pix2Seq, tmp_path: Path) -> Path:
    save_detector(tmp_path / "pix2seq.safetensors", pix2seq, {})
    return tmp_path / "pix2seq.safetensors"


@pytest.fixture
def image(paint: Callable[..., Path], tmp_path: Path) -> Path:
    return paint(tmp_path / "a <b>.png", (120, 80), (30, 20, 90, 60))


def trace_of(detector: SequenceDetector, image: Path) -> tuple[Image.Image, GenerationTrace]:
    photo = open_image(image)
    return photo, trace_generation(detector, to_batch([DecodedImage(photo, photo.size)], detector.image_size))[0]


def test_every_token_is_on_the_page(pix2seq: Pix2Seq, weights: Path, image: Path, tmp_path: Path) -> None:
    page = explain(weights, image, tmp_path / "out")
    assert page == tmp_path / "out" / "a <b>.png.html"
    text = page.read_text(encoding="utf-8")
    _, trace = trace_of(pix2seq, image)
    tokens = re.findall(r'<span class="token" tabindex="0" style="--p:([\d.]+)"><i>(.*?)</i>', text)
    assert [name for _, name in tokens] == [escape(trace.token_names[token]) for token in trace.tokens_N5.flatten()]
    assert [float(p) for p, _ in tokens] == pytest.approx(trace.token_probabilities().flatten().tolist(), abs=6e-4)
    assert "&lt;dog&gt;" in text
    assert "<dog>" not in text
    assert text.count('class="tip"') == 4 * 5


def test_the_page_needs_nothing_else(weights: Path, image: Path, tmp_path: Path) -> None:
    text = explain(weights, image, tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=\"(?!data:)|<link|<script|@import|url\(", text)
    assert text.count("data:image/jpeg;base64,") == 1 + 4 * (4 + 5 + 2)
    assert sorted(set(re.findall(r'href="#(.*?)"', text))) == sorted(set(re.findall(r'id="(.*?)"', text)))


def test_a_page_names_what_was_copied(copying: Pix2Seq, image: Path, tmp_path: Path) -> None:
    save_detector(tmp_path / "copying.safetensors", copying, {})
    text = explain(tmp_path / "copying.safetensors", image, tmp_path).read_text(encoding="utf-8")
    _, trace = trace_of(copying, image)
    assert trace.copied is not None
    for n in range(len(trace)):
        assert f"<b>{trace.copied.name(trace.copied.source(n))}</b>" in text
        assert f"{trace.copied.gates()[n]:.2f} given the box." in text
    assert text.count("data:image/jpeg;base64,") == 1 + 4 * (4 + 5 + 2 + 1)


def test_a_page_of_patches_names_them_and_what_was_copied(
    copying_patches: PatchSeq, image: Path, tmp_path: Path
) -> None:
    save_detector(tmp_path / "patches.safetensors", copying_patches, {})
    text = explain(tmp_path / "patches.safetensors", image, tmp_path).read_text(encoding="utf-8")
    _, trace = trace_of(copying_patches, image)
    assert trace.copied is not None
    tokens = re.findall(r'<span class="token" tabindex="0" style="--p:[\d.]+"><i>(.*?)</i>', text)
    assert tokens == [escape(trace.token_names[token]) for token in trace.tokens_N5.flatten()]
    for n in range(len(trace)):
        assert f"<b>{trace.copied.name(trace.copied.source(n))}</b>" in text
        x1, y1, x2, y2 = trace.found.boxes_N4[n].round().astype(int).tolist()
        assert text.count(f" · {y1}, {x1} px") >= 2
        assert text.count(f" · {y2}, {x2} px") >= 2
    assert text.count("data:image/jpeg;base64,") == 1 + 4 * (5 + 2 + 1)
    assert "by row and column" in text


def test_a_published_patchseq_cannot_be_explained(image: Path, tmp_path: Path) -> None:
    config = PatchSeqConfig("test_efficientnet", 96, encoder_layers=0, decoder_layers=1, dim=24, hidden=48, heads=3)
    published = PatchSeq(config, ("cat",), pretrained=False)
    save_detector(tmp_path / "patches.safetensors", published, {})
    with pytest.raises(UserError, match="a patchseq as published can't be explained, one with proposals"):
        explain(tmp_path / "patches.safetensors", image, tmp_path / "out")


def test_an_empty_sequence_has_a_page(pix2seq: Pix2Seq, image: Path, tmp_path: Path) -> None:
    photo, trace = trace_of(pix2seq, image)
    for name in ("tokens_N5", "probabilities_N5V", "allowed_N5V", "coordinates_N4R", "corners_N4", "attention_N5HW"):
        setattr(trace, name, getattr(trace, name)[:0])
    trace.found, trace.end = trace.found.above(2), 0.87
    write_page(tmp_path / "none.html", "None", photo, trace, "")
    text = (tmp_path / "none.html").read_text()
    assert "The end, with a probability of 0.87" in text
    assert 'class="token"' not in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.jpg", None, "no.jpg: cannot be read as an image: the file is missing"),
        ("text.jpg", b"not an image", "text.jpg: cannot be read as an image: not an image"),
        ("empty.png", b"", "empty.png: cannot be read as an image: the file is empty"),
    ],
)
def test_an_image_that_is_none_is_named(
    weights: Path, tmp_path: Path, name: str, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["explain", str(weights), str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(params=["detr", "proposing", "deformable"])
def query_detector(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    detector = small_query_detector(request.param)
    save_detector(tmp_path / "query_detector.safetensors", detector, {})
    return tmp_path / "query_detector"


def test_the_page_of_a_query_shows_every_layer_and_head(query_detector: Path, image: Path, tmp_path: Path) -> None:
    text = explain(query_detector, image, tmp_path, query=3).read_text(encoding="utf-8")
    detector = load_detector(query_detector)
    recorded = record_pass(detector, to_batch([DecodedImage(open_image(image), (120, 80))], 96))  # type: ignore[arg-type]
    assert re.findall(r'id="query-(\d+)"', text) == ["3"]
    assert not re.search(r"https?://|src=\"(?!data:)|<link|<script|@import|url\(", text)
    for layer in range(2):
        label, score = recorded.prediction(2, layer)
        assert f"layer {layer + 1} <small>· {escape(recorded.names[label])} {score:.2f}</small>" in text
    assert text.count("<h4>head ") == 4
    assert text.count("data:image/jpeg;base64,") == 1 + 2 + 4 + sum(
        len(maps) for maps in recorded.pixel_maps((0.5, 0.5))
    )
    assert "<dog>" not in text


def test_the_page_of_a_pixel_shows_what_attends_to_it(query_detector: Path, image: Path, tmp_path: Path) -> None:
    text = explain(query_detector, image, tmp_path, pixel=(119, 0)).read_text(encoding="utf-8")
    assert "<h3>pixel 119, 0</h3>" in text
    assert "id=" not in text
    assert len(re.findall(r"<h4>query \d+ <small>", text)) == 5


def test_the_best_queries_are_shown_by_default(query_detector: Path, image: Path, tmp_path: Path) -> None:
    shown = re.findall(r'id="query-(\d+)"', explain(query_detector, image, tmp_path).read_text(encoding="utf-8"))
    assert 2 <= len(shown) <= 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--query", "0"], "--query must be from 1 to 7, which this detector has, not 0"),
        (["--query", "8"], "--query must be from 1 to 7, which this detector has, not 8"),
        (["--pixel", "[120, 0]"], "--pixel must lie in the image, which is 120 wide and 80 high, not at [120, 0]"),
        (["--pixel", "[0, -1]"], "--pixel must lie in the image"),
        (["--pixel", "[1]"], "--pixel"),
    ],
)
def test_a_query_or_pixel_that_is_not_there_is_named(
    image: Path, tmp_path: Path, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_detector(tmp_path / "query_detector.safetensors", small_query_detector("detr"), {})
    assert main(["explain", str(tmp_path / "query_detector"), str(image), "--out", str(tmp_path / "out"), *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_sequence_has_no_queries(weights: Path, image: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--query and --pixel are for a detr or deformable; this is a pix2seq"):
        explain(weights, image, tmp_path / "out", query=1)


def test_a_place_that_cannot_be_written_is_named_before_any_work(image: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file is a file, not a folder; give another --out"):
        explain(tmp_path / "no weights", image, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_detector_that_cannot_be_explained_is_named_before_it_is_loaded(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("boxwright.explanation.explain.load_detector")
    dense = registry.build("dense", "nano", ("cat",), backbone="test_efficientnet", pretrained=False)
    save_detector(tmp_path / "dense.safetensors", dense, {})
    with pytest.raises(UserError, match="a dense can't be explained; a pix2seq, patchseq, detr or deformable can"):
        explain(tmp_path / "dense", image, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_page_that_is_replaced_is_said_to_be(
    weights: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explain(weights, image, tmp_path / "out")
    assert "in place of" not in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    explain(weights, image.rename(tmp_path / "other" / image.name), tmp_path / "out")
    assert "written, in place of an earlier page:" in " ".join(capsys.readouterr().out.split())
