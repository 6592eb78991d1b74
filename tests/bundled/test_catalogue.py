import json

import pytest

from boxwright.__main__ import main
from boxwright.bundled.catalogue import GOOD_FOR, IMPORTED, INSTALLED, MEASURED, list_models, origin
from boxwright.models import registry

NANO = [model for model, (_, _, sizes) in registry.DETECTORS.items() if "nano" in sizes]


def test_every_size_of_every_detector_is_listed():
    there = {(entry.model, entry.size) for entry in list_models()}
    assert there == {(model, size) for model, (_, _, sizes) in registry.DETECTORS.items() for size in sizes}
    assert set(GOOD_FOR) == set(NANO)


@pytest.mark.parametrize("model", NANO)
def test_the_stored_numbers_are_those_of_the_code(model):
    """Where this fails, `python benchmarks/measure_models.py` measures again."""
    detector = registry.build(model, "nano", ("a", "b", "c"), pretrained=False)
    stored = json.loads(MEASURED.read_text())[f"{model}/nano"]
    assert stored["parameters"] == sum(p.numel() for p in detector.parameters())
    assert stored["cpu_ms"] > 0


def test_scores_name_their_data_and_settings():
    entry = next(entry for entry in list_models() if (entry.model, entry.size) == ("dense", "nano"))
    assert "0.580 (bccd, 320 px, 40 epochs)" in entry.scores


def test_weights_say_where_they_are_from_and_their_licence():
    assert origin("tf_efficientnet_lite0") == (INSTALLED, "apache-2.0")
    assert origin("resnet50")[0].startswith("hub: timm/resnet50")
    assert origin("patches") == (IMPORTED, "-")


def test_the_command_prints_them_all_on_whole_lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["models"]) == 0
    output = capsys.readouterr().out
    assert "  demo: dense, 320 px, Platelets, RBC, WBC\n" in output
    for entry in list_models():
        assert any(line.startswith(f"  {entry.size} ") and entry.source in line for line in output.splitlines())
