"""The structure that no other tool checks: detectors are known by their contract, and one word stays gone."""

import ast
import re
from pathlib import Path

import pytest

import boxwright
from boxwright.models.registry import DETECTORS

PACKAGE = Path(boxwright.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
KINDS = {entry.network.__name__ for entry in DETECTORS.values()}


def kinds_named(source: str) -> set[str]:
    """Classes of detectors that a module imports or names, docstrings and comments apart."""
    nodes = list(ast.walk(ast.parse(source)))
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return KINDS & (imported | names | attributes)


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(detector, Detr | Deformable)",
        "from boxwright.models.detr import Detr as Other",
        "isinstance(detector, (models.dense.Dense, int))",
    ],
)
def test_asking_for_the_kind_of_a_detector_is_noticed(source):
    assert kinds_named(source)


def test_no_module_but_models_and_interop_asks_for_the_kind_of_a_detector():
    assert "PatchSeq" in KINDS
    outside = [file for file in MODULES if file.relative_to(PACKAGE).parts[0] not in ("models", "interop")]
    assert len(outside) > 100
    assert {str(file.relative_to(PACKAGE)): kinds for file in outside if (kinds := kinds_named(file.read_text()))} == {}


def test_no_name_comment_or_docstring_contains_said():
    word = re.compile(r"(?<![a-z])said(?![a-z])", re.IGNORECASE)
    assert [str(file.relative_to(PACKAGE)) for file in MODULES if word.search(file.read_text())] == []
