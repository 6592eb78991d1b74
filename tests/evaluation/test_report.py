"""One page with everything inside."""

import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from boxwright.evaluation.coco import score
from boxwright.evaluation.report import write_page
from boxwright.evaluation.thresholds import Choice
from boxwright.thresholds import Thresholds
from helpers.score_cases import NAMES, random_case


def test_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg")
    report = score(*random_case(4), NAMES)
    page = tmp_path / "index.html"
    write_page(
        page, "A < B & %BODY%", report, Choice(None, Thresholds()), [("<b>", tmp_path / "a.png")], ["100% & more"],
        [("chart", tmp_path / "b.jpg")], tmp_path / "a.png",
    )  # fmt: skip
    text = page.read_text(encoding="utf-8")
    assert "A &lt; B &amp;" in text
    assert "&lt;b&gt;" in text
    assert text.count("data:image/png;base64,") == 2
    assert text.count("data:image/jpeg;base64,") == 1
    assert not re.search(r"https?://|src=\"(?!data:)|<link|<script|@import|url\(", text)
    assert report.summary().splitlines()[0] in text.replace("&gt;", ">")
    assert all(name in text for name in NAMES)
    filled = sum(bin["detections"] > 0 for bin in report.to_dict()["calibration"]["bins"])
    assert text.count("<tr>") == 1 + len(NAMES) + 1 + 1 + filled + 1 + len(NAMES) + 2
    Balanced().check(text)


class Balanced(HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def check(self, text: str) -> None:
        self.feed(text)
        assert self.open == []
