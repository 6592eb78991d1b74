"""The modules of benchmarks/parity, for tests that run their checks on small cases."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "parity"


def parity_modules(*names: str) -> list[ModuleType]:
    """They import each other by bare names, as in `python benchmarks/parity/parity.py`; neither path nor names stay."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        modules = [importlib.import_module(name) for name in names]
    for added in set(sys.modules) - before:
        if Path(getattr(sys.modules[added], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[added]
    return modules
