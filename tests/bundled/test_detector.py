"""The detector that ships is as good as its model card says."""

import re

import pytest

from boxwright.bundled import demo
from boxwright.checkpoints.detector_file import load_detector
from boxwright.data.cache import build
from boxwright.data.read import read
from boxwright.evaluation.coco import score
from boxwright.evaluation.run import detect


@pytest.mark.slow
def test_it_reaches_the_scores_of_its_card():
    detector, dataset = load_detector(demo.WEIGHTS), read(demo.DATA)
    records = dataset.splits["test"]
    report = score(records, detect(detector, build(records, detector.image_size)), dataset.names)
    told = re.search(r"AP (0\.\d+), AP50 (0\.\d+)", (demo.HERE / "MODEL_CARD.md").read_text())
    assert [report.ap, report.ap50] == [pytest.approx(float(number), abs=0.002) for number in told.groups()]
