"""The README's table of detectors gets its numbers from comparisons, and nothing else changes."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from boxwright.models import registry

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("readme_detectors", ROOT / "runs" / "readme_detectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def comparison(seed: int, ap: float) -> dict[str, Any]:
    stats = {"AP": ap, "AP50": 0.7, "ECE": -1.0}
    row = {"model": "dense", "stats": stats, "cost": {"parameters": 3.8e6}}
    terms = {"data": "x/bccd", "image_size": 192, "size": "nano", "epochs": 5, "minutes": None, "seed": seed}
    return {"terms": terms, "device": "2 CPU cores", "images": 72, "rows": [row]}


def test_numbers_are_filled_in_and_replaced(script):
    first = script.fill(README, [comparison(0, 0.5)])
    (dense,) = [line for line in first.splitlines() if line.startswith("| `dense` |")]
    assert dense.endswith("| 0.500 | 0.700 | - | 3.8 |")
    (detr,) = [line for line in first.splitlines() if line.startswith("| `detr` |")]
    assert detr.endswith("| - | - | - | - |")
    assert "Numbers: bccd, 192 px, size nano, 5 epochs each; AP and ECE on 72 images;" in " ".join(first.split())
    second = script.fill(first, [comparison(0, 0.5), comparison(1, 0.4)])
    assert "| 0.450 | 0.700 |" in second
    assert "mean of the seeds 0, 1, at most 0.100 AP apart" in " ".join(second.split())
    assert second.count("Numbers: ") == 1
    assert script.fill(second, [comparison(0, 0.5)]) == first


def test_everything_else_stays(script):
    head, _, tail = README.partition(script.NUMBERS)
    before = [*head.splitlines(), *tail.partition("\n\n")[2].splitlines()]
    after = script.fill(README, [comparison(0, 0.5)]).splitlines()
    table = [
        line for line in before if line.startswith(("| `--model`", "| ---", *(f"| `{m}`" for m in registry.DETECTORS)))
    ]
    assert all(line in after for line in before if line not in table)
