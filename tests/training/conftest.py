"""Data to train on, a cache of the tests' own, and no charts where none are wanted."""

from pathlib import Path

import pytest

from helpers.training_runs import squares_and_discs, train


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares_and_discs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, only to be read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOXWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return train(data, tmp_path_factory.mktemp("finished") / "run", epochs=1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def charts() -> None:
    """For a test that wants `curves.png` drawn."""


@pytest.fixture(autouse=True)
def _no_charts(request: pytest.FixtureRequest) -> None:
    if "charts" not in request.fixturenames:
        request.getfixturevalue("no_charts")
