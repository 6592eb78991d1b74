"""The page in a real browser."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx_samples import white_boxes
from uploads import picture

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where a service of its own process listens."""
    model = white_boxes(tmp_path / "model.onnx")
    command = [sys.executable, "-u", "-m", "boxwright", "serve", str(model), "--port", "0"]
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
        asked, faults = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(error))
        page.goto(address)
        page.wait_for_selector("text=finds box, other")
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture((960, 640))})
        page.wait_for_selector("#save:enabled")
        assert page.inner_text("#count") == "1"
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
    assert all(url.startswith((address, "blob:", "data:")) for url in asked)


def _slide(page, value: float) -> None:
    page.evaluate(
        "value => { const slider = document.getElementById('threshold'); slider.value = value;"
        " slider.dispatchEvent(new Event('input')); }",
        value,
    )
