"""A page fits on a phone and on a desk, and shows its pictures in full size."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from boxwright.visualization import html

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]

PAGE = """{% extends "visualization/page/base.html" %}
{% from "visualization/page/parts.html" import bar, figure, tile %}
{% block body %}
<h1>{{ title }}</h1>
<section class="tiles">{% for n in range(6) %}{{ tile("0.123", "AP", "objects under 32 px") }}{% endfor %}</section>
<div class="wide">
<table class="stack"><thead><tr>{% for n in range(12) %}<th>column {{ n }}</th>{% endfor %}</tr></thead>
<tbody><tr><td>row</td>{% for n in range(11) %}{{ bar(0.5, "1,234.5", "column") }}{% endfor %}</tr></tbody></table>
</div>
{{ figure(picture, "a picture", "what is on it") }}
{% endblock %}"""


@pytest.mark.parametrize("width", [390, 1300])
def test_a_page_fits_and_its_pictures_open_in_full_size(width: int, tmp_path: Path, monkeypatch) -> None:
    picture = html.image_address(Image.new("RGB", (1600, 900), "teal"))
    environment = html._templates()
    only = SimpleNamespace(get_template=lambda name: environment.from_string(PAGE))
    monkeypatch.setattr(html, "_templates", lambda: only)
    html.write_page(tmp_path / "page.html", "page.html", "boxwright evaluate a b", title="A title", picture=picture)
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((tmp_path / "page.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        table = page.locator("table")
        assert table.evaluate("node => node.scrollWidth <= node.parentElement.clientWidth")
        shown = page.get_by_alt_text("what is on it")
        assert shown.bounding_box()["width"] < width
        shown.click()
        assert shown.bounding_box()["width"] == 1600
        page.keyboard.press("Space")
        assert shown.bounding_box()["width"] < width
        assert "boxwright evaluate a b" in page.locator("footer").inner_text()
        assert page.title() == "A title · boxwright"
        browser.close()
