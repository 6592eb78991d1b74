"""The page: all words are on it, it needs nothing else, and what can't be explained says so."""

import re
from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest
from PIL import Image

from boxwright.__main__ import main
from boxwright.config import UserError
from boxwright.data.images import open_image
from boxwright.inference.explain import explain, write_page
from boxwright.inference.predictor import Ready, to_batch
from boxwright.inference.sentence import Sentence, write_sentences
from boxwright.models import zoo
from boxwright.models.pix2seq import Pix2Seq
from boxwright.models.weights import save_detector


@pytest.fixture
def weights(writer: Pix2Seq, tmp_path: Path) -> Path:
    save_detector(tmp_path / "writer.safetensors", writer, {})
    return tmp_path / "writer.safetensors"


@pytest.fixture
def image(paint: Callable[..., Path], tmp_path: Path) -> Path:
    return paint(tmp_path / "a <b>.png", (120, 80), (30, 20, 90, 60))


def sentence_of(writer: Pix2Seq, image: Path) -> tuple[Image.Image, Sentence]:
    photo = open_image(image)
    return photo, write_sentences(writer, to_batch([Ready(photo, photo.size)], writer.image_size))[0]


def test_every_word_is_on_the_page(writer: Pix2Seq, weights: Path, image: Path, tmp_path: Path) -> None:
    page = explain(weights, image, tmp_path / "out")
    assert page == tmp_path / "out" / "a <b>.png.html"
    text = page.read_text(encoding="utf-8")
    _, sentence = sentence_of(writer, image)
    said = re.findall(r'<span class="word" tabindex="0" style="--p:([\d.]+)"><i>(.*?)</i>', text)
    assert [word for _, word in said] == [escape(sentence.words[token]) for token in sentence.tokens_N5.flatten()]
    assert [float(p) for p, _ in said] == pytest.approx(sentence.likelihoods().flatten().tolist(), abs=6e-4)
    assert "&lt;dog&gt;" in text
    assert "<dog>" not in text
    assert text.count('class="tip"') == 4 * 5


def test_the_page_needs_nothing_else(weights: Path, image: Path, tmp_path: Path) -> None:
    text = explain(weights, image, tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=\"(?!data:)|<link|<script|@import|url\(", text)
    assert text.count("data:image/jpeg;base64,") == 1 + 4 * (4 + 5 + 2)
    assert sorted(set(re.findall(r'href="#(.*?)"', text))) == sorted(set(re.findall(r'id="(.*?)"', text)))


def test_a_sentence_of_nothing_has_a_page(writer: Pix2Seq, image: Path, tmp_path: Path) -> None:
    photo, sentence = sentence_of(writer, image)
    for name in ("tokens_N5", "probabilities_N5V", "allowed_N5V", "places_N4R", "chosen_N4", "attention_N5HW"):
        setattr(sentence, name, getattr(sentence, name)[:0])
    sentence.found, sentence.end = sentence.found.above(2), 0.87
    write_page(tmp_path / "none.html", "None", photo, sentence, "")
    text = (tmp_path / "none.html").read_text()
    assert "The end, with a probability of 0.87" in text
    assert 'class="word"' not in text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.jpg", None, "no.jpg: cannot be read as an image: the file is missing"),
        ("text.jpg", b"not an image", "text.jpg: cannot be read as an image: not an image"),
        ("empty.png", b"", "empty.png: cannot be read as an image: the file is empty"),
    ],
)
def test_an_image_that_is_none_is_named(
    weights: Path, tmp_path: Path, name: str, content: bytes | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["explain", str(weights), str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_named(weights: Path, image: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="can't be written"):
        explain(weights, image, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_detector_that_writes_nothing_is_named(image: Path, tmp_path: Path) -> None:
    dense = zoo.build("dense", "nano", ("cat",), backbone="test_efficientnet", pretrained=False)
    save_detector(tmp_path / "dense.safetensors", dense, {})
    with pytest.raises(UserError, match="of a pix2seq are written; this is a dense"):
        explain(tmp_path / "dense", image, tmp_path / "out")
    assert not (tmp_path / "out").exists()
