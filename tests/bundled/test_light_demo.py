"""Where torch is not installed, the exported detector does the demo."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from boxwright.bundled import demo, light_demo
from boxwright.checkpoints.locate import exported_bundled
from boxwright.data.read import read
from boxwright.runtime import Detector


@pytest.fixture
def few(monkeypatch):
    """The data set, with twelve of its test images."""
    dataset = read(demo.DATA)
    part = replace(dataset, splits={"test": dataset.splits["test"][::6]})
    monkeypatch.setattr(light_demo, "read", lambda _: part)
    return part.splits["test"]


def test_it_draws_and_counts(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    matches = demo.demo(out=tmp_path)
    assert len(list((tmp_path / "overlays").glob("*.jpg"))) == len(few)
    assert matches.objects_K.sum() == sum((~record.ignore_N).sum() for record in few)
    assert matches.right_D.sum() / matches.objects_K.sum() > 0.75
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert f"all {matches.objects_K.sum()} {len(matches.right_D)} {matches.right_D.mean():.3f}" in out
    assert 'pip install "boxwright[train]" adds average precision' in out


def test_it_imports_nothing_heavy():
    code = (
        "import sys; import boxwright.bundled.demo, boxwright.bundled.light_demo; "
        "assert not {'torch', 'matplotlib', 'scipy', 'supervision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_exported_file_is_that_of_the_weights(few):
    """As the gate of `export` has measured; a few images, so that it is noticed where only one of them is replaced."""
    import boxwright

    exported, source = Detector(exported_bundled("demo")), boxwright.load("demo", device="cpu")
    assert (exported.names, exported.facts.precision) == (source.names, "int8")
    assert exported.thresholds == source.thresholds
    assert json.dumps(exported.facts.card["settings"]) == json.dumps(source.card["settings"])
    for record in few[:3]:
        own, other = exported.predict(record.path), source.predict(record.path)
        assert abs(len(own) - len(other)) <= 2
        np.testing.assert_allclose(own.boxes[:3], other.boxes[:3], atol=12)
