"""The page of `boxwright check --out`: one file that says what is in the data and shows what is wrong."""

import re

import numpy as np
import pytest
from PIL import Image

from boxwright.config import UserError
from boxwright.data.read import parse
from boxwright.inspection import statistics
from boxwright.inspection.check import check
from helpers import datasets as samples


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a data set with two splits, a leak, and a fault in a box; the class names are unpleasant."""
    root = tmp_path_factory.mktemp("page") / "my <data>"
    content = samples.coco_content(4)
    content["categories"][0]["name"] = "<b>dog"
    content["annotations"][0]["bbox"] = [30, 9, 12, 5]
    samples.coco(root, content)
    picture = Image.effect_noise((40, 30), 80).resize((400, 300), Image.Resampling.BICUBIC).resize((40, 30))
    samples.write_json(root / "annotations" / "instances_train.json", content | {"images": content["images"][:2]})
    samples.write_json(root / "annotations" / "instances_val.json", content | {"images": content["images"][2:]})
    (root / "annotations.json").unlink()
    picture.convert("RGB").save(root / "images" / "001.jpg", quality=95)
    picture.convert("RGB").save(root / "images" / "003.jpg", quality=80)
    out = root.parent / "page.html"
    check(root, out=out)
    return out.read_text(encoding="utf-8")


def test_it_says_what_made_it(page):
    assert re.search(r"boxwright \d+\.\d+\.\d+, \d{4}-\d\d-\d\d \d\d:\d\d UTC", page)
    assert "boxwright check &#39;" in page
    assert "my &lt;data&gt;" in page
    assert "Training leaves out boxes" in page or "Training will refuse" in page


def test_it_loads_nothing_and_every_picture_has_a_text(page):
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    images = re.findall(r"<img[^>]*>", page)
    assert len(images) > 5
    assert all(re.search(r'alt="[^"]+"', image) for image in images)


def test_names_are_escaped(page):
    assert "<b>dog" not in page
    assert "&lt;b&gt;dog" in page


def test_a_copy_in_another_split_is_shown(page):
    assert "1 in train, 1 in val" in page


def test_each_kind_of_fault_is_there_with_its_picture(page):
    section = page[page.index("box-outside (") :]
    assert "annotation 100: the box (30, 9, 42, 14) reaches outside" in section
    assert "001.jpg, with one cat marked" in section


def test_the_page_has_a_name_of_a_page(tmp_path):
    root = samples.coco(tmp_path / "data")
    check(root, out=tmp_path / "page")
    assert (tmp_path / "page.html").is_file()
    before = (root / "images" / "001.jpg").read_bytes()
    with pytest.raises(UserError, match="not the name of a page"):
        check(root, out=root / "images" / "001.jpg")
    assert (root / "images" / "001.jpg").read_bytes() == before


def test_a_data_set_without_a_usable_box_has_a_page(tmp_path):
    content = samples.coco_content()
    content["annotations"].clear()
    check(samples.coco(tmp_path / "data", content), out=tmp_path / "page.html")
    assert "<h2>Faults</h2>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_heat_map_is_the_share_of_boxes_over_each_cell(tmp_path):
    content = samples.coco_content(1)
    content["images"][0].update(width=64, height=64)
    rows = [[0, 0, 64, 64], [0, 0, 32, 16], [-5, -5, 15, 15], [40, 40, float("nan"), 2]]
    content["annotations"] = [{"id": i, "image_id": 1, "category_id": 3, "bbox": bbox} for i, bbox in enumerate(rows)]
    boxes = statistics.collect(parse(samples.coco(tmp_path, content)))
    map_GG = statistics.heat_map(boxes)
    assert len(boxes.labels_N) == 3  # one has no numbers
    assert map_GG[0, 0] == pytest.approx(1)
    assert map_GG[0, 31] == pytest.approx(2 / 3)
    assert map_GG[15, 10] == pytest.approx(2 / 3)
    assert map_GG[16, 10] == map_GG[63, 63] == pytest.approx(1 / 3)
    assert np.allclose(statistics.heat_map(boxes, 1), 0)


def test_histograms_count_every_box_once(tmp_path):
    boxes = statistics.collect(parse(samples.voc(tmp_path)))
    for histogram in statistics.histograms(boxes):
        of_images = "mage" in histogram.title.split(":")[0]
        total = sum(count for _, count, _ in histogram.rows)
        assert total == (len(boxes.counts_I) if of_images else len(boxes.labels_N)), histogram
        assert max(share for _, _, share in histogram.rows) == 1


def test_the_oddest_box_is_the_planted_one(tmp_path):
    content = samples.coco_content(30)
    content["annotations"] = [
        {"id": i, "image_id": i, "category_id": 3, "bbox": [1, 1, 8 + i % 3, 8]} for i in range(1, 31)
    ]
    content["annotations"][11]["bbox"] = [0, 0, 40, 2]
    boxes = statistics.collect(parse(samples.coco(tmp_path, content)))
    (first, score), *others = statistics.oddest(boxes, 5)
    assert boxes.image_N[first] == 11
    assert score > 3
    assert others == []
