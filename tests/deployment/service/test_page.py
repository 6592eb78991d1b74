"""The page in a real browser."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from boxwright.checkpoints.detector_file import save_detector
from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig
from boxwright.thresholds import Thresholds
from helpers.onnx_files import facts, white_boxes
from helpers.uploads import picture

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
TINY = Pix2SeqConfig(
    backbone="test_efficientnet", image_size=64, encoder_layers=1, encoder_dim=32, encoder_hidden=64, encoder_heads=4,
    decoder_layers=1, decoder_dim=24, decoder_hidden=48, decoder_heads=3, max_objects=12, length=60, bins=50,
    first_coordinate=120, vocabulary=180,
)  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where a service of its own process listens."""
    with _served(white_boxes(tmp_path / "model.onnx")) as address:
        yield address


@contextmanager
def _served(model: Path) -> Iterator[str]:
    command = [sys.executable, "-u", "-m", "boxwright", "serve", str(model), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield next(word for word in line.split() if word.startswith("http://"))
        process.terminate()
        assert process.wait(20) == 0
        assert process.stdout.read().split() == ["ended"]


def test_an_image_is_dropped_its_boxes_are_thinned_out_and_saved(address, tmp_path):
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        addresses, faults = [], []
        page.on("request", lambda request: addresses.append(request.url))
        page.on("pageerror", lambda error: faults.append(error))
        page.goto(address)
        page.wait_for_selector("text=finds box, other")
        assert page.is_hidden("#writer")
        assert page.is_hidden("#counted")
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture((960, 640))})
        page.wait_for_selector("#save:enabled")
        assert page.inner_text("#count") == "1"
        assert page.get_attribute("#canvas", "aria-label") == "the image; boxes shown: 1"
        _slide(page, 0.1)
        assert page.inner_text("#count") == "2"
        page.click("#classes >> text=other")
        assert page.inner_text("#count") == "1"
        with page.expect_download() as download:
            page.click("#save")
        name, saved = download.value.suggested_filename, json.loads(Path(download.value.path()).read_text())
        page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": b"no image"})
        page.wait_for_selector("text=b.png cannot be read as an image")
        browser.close()
    assert name == "a.json"
    [row] = saved["annotations"]
    assert row["category_id"] == 1
    assert saved["images"] == [{"id": 1, "file_name": "a.png", "width": 960, "height": 640}]
    assert not faults
    assert all(url.startswith((address, "blob:", "data:")) for url in addresses)


def test_each_class_has_its_stored_threshold_until_the_slider_is_moved(tmp_path):
    card = json.dumps(Thresholds(0.4, {"box": 0.95, "other": 0.2}, "x").to_card())
    model = white_boxes(tmp_path / "model.onnx", facts(card=card))
    with _served(model) as address, sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("text=box 0.95, other 0.20")
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture()})
        page.wait_for_selector("#save:enabled")
        assert page.inner_text("#classes .name") == "other"
        assert page.inner_text("#shown-threshold") == "by class"
        assert page.input_value("#threshold") == "0.4"
        assert page.is_hidden("#stored")
        _slide(page, 0.5)
        assert page.inner_text("#classes .name") == "box"
        assert page.inner_text("#shown-threshold") == "0.50"
        page.click("#stored")
        assert page.inner_text("#classes .name") == "other"
        assert page.inner_text("#shown-threshold") == "by class"
        browser.close()


def test_another_image_is_chosen_by_the_button_or_by_keys_and_of_several_dropped_the_first_is_told(address):
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture()})
        page.wait_for_selector("#other:enabled")
        with page.expect_file_chooser(timeout=5000):
            page.click("#other")
        with page.expect_file_chooser(timeout=5000):
            page.press("#file", "Enter")
        choosers = []
        page.on("filechooser", lambda chooser: choosers.append(chooser))
        page.click("#canvas")
        page.evaluate(
            """() => document.getElementById("canvas").toBlob((blob) => {
                 const dataTransfer = new DataTransfer();
                 for (const name of ["b.png", "c.png", "d.png"]) dataTransfer.items.add(new File([blob], name));
                 document.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
               })"""
        )
        page.wait_for_selector("text=/^b.png, .* Only this one of the 3 files was taken[.]$/")
        browser.close()
    assert not choosers


@pytest.fixture(params=[{}, {"proposals": 20, "channels": 24, "depth": 1}], ids=["published", "copying"])
def sequence_service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The same with an untrained sequence detector."""
    torch.manual_seed(0)
    detector = Pix2Seq(replace(TINY, **request.param), ("cat", "dog"), pretrained=False)
    save_detector(tmp_path / "model.safetensors", detector, {})
    with _served(tmp_path / "model.safetensors") as address:
        yield address


def test_a_sentence_is_watched_and_goes_on_from_boxes_that_are_drawn(sequence_service):
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
        addresses, faults = [], []
        page.on("request", lambda request: addresses.append(request.url))
        page.on("pageerror", lambda error: faults.append(error))
        page.goto(sequence_service)
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture((600, 400))})
        page.wait_for_selector("#watch:enabled")
        _slide(page, 0)
        detected = _saved(page)
        page.click("#watch")
        page.wait_for_selector("text=12 objects written")
        assert page.locator("#sentence li").count() == 12
        assert page.locator("#sentence .word").count() == 60
        assert page.inner_text("#sentence li:first-child .slot >> nth=0") == "y1"
        assert _saved(page) == detected
        page.check("#draw")
        page.select_option("#drawn-class", label="dog")
        _drag(page, (0.1, 0.2), (0.4, 0.7))
        page.wait_for_selector("text=1 drawn")
        page.press("#canvas", "Enter")
        page.press("#canvas", "ArrowLeft")
        page.press("#canvas", "Shift+ArrowDown")
        page.press("#canvas", "Enter")
        page.press("#canvas", "Delete")
        page.wait_for_selector("text=2 drawn")
        assert len(_saved(page)) == 2
        page.click("text=Let it finish")
        page.wait_for_selector("text=12 objects written")
        first, second, *others = _saved(page)
        browser.close()
    assert first["bbox"] == pytest.approx([60, 80, 180, 200], abs=2)
    assert second["bbox"] == [217, 150, 150, 108]
    assert [row["category_id"] for row in (first, second)] == [2, 2]
    assert len(others) == 10
    assert [row["id"] for row in (first, second, *others)] == list(range(1, 13))
    assert not faults
    assert all(url.startswith((sequence_service, "blob:", "data:")) for url in addresses)


def test_a_sentence_is_stopped(sequence_service):
    with _ready_to_write(sequence_service) as page:
        page.click("#watch")
        page.wait_for_selector("#sentence li:nth-child(2)")
        page.click("text=Stop")
        page.wait_for_selector("text=stopped after")
        assert 1 <= page.locator("#sentence li").count() < 12
        page.click("text=Watch it write")
        page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": picture()})
        page.wait_for_selector("text=b.png, 96 x 64")
        assert page.is_hidden("#sentence")
        assert page.inner_text("#count") == "12"


def test_a_box_drawn_while_another_is_being_written_takes_its_place(sequence_service):
    with _ready_to_write(sequence_service) as page:
        page.check("#draw")
        page.click("#watch")
        page.wait_for_selector("#sentence li:nth-child(2)")
        page.press("#canvas", "Enter")
        page.wait_for_selector("text=1 drawn")
        assert page.evaluate("beginning") is None
        page.click("text=Let it finish")
        # The drag begins in the pause behind the last word of an object, before the object itself is shown.
        dragged, annotations = page.evaluate(
            """() => new Promise((resolve) => {
                 const canvas = byId("canvas");
                 canvas.setPointerCapture = () => {};
                 const observer = new MutationObserver(() => {
                   if (!document.querySelector("#sentence li:nth-child(2) .word:nth-child(5)")) return;
                   observer.disconnect();
                   canvas.dispatchEvent(new PointerEvent("pointerdown", { button: 0, pointerId: 1 }));
                   setTimeout(() => resolve([beginning?.dragged, found.annotations.length]), 300);
                 });
                 observer.observe(byId("sentence"), { childList: true, subtree: true });
               })"""
        )
    assert dragged
    assert annotations == 1


@contextmanager
def _ready_to_write(sequence_service: str) -> Iterator:
    """The page with an image, at a threshold of 0; nothing may go wrong on it."""
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page, faults = browser.new_page(), []
        page.on("pageerror", lambda error: faults.append(error))
        page.goto(sequence_service)
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture()})
        page.wait_for_selector("#watch:enabled")
        _slide(page, 0)
        yield page
        browser.close()
    assert not faults


def _saved(page) -> list[dict]:
    with page.expect_download() as download:
        page.click("#save")
    return json.loads(Path(download.value.path()).read_text())["annotations"]


def _drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one place of the image to another, as fractions of its sides."""
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    for (x, y), act in ((start, page.mouse.down), (end, page.mouse.up)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        act()


def _slide(page, value: float) -> None:
    page.evaluate(
        "value => { const slider = document.getElementById('threshold'); slider.value = value;"
        " slider.dispatchEvent(new Event('input')); }",
        value,
    )
