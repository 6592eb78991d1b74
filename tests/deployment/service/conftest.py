"""A service in this process, over a detector that finds the white box."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from boxwright.deployment.service.app import make_app
from boxwright.deployment.service.decoders import Decoders
from boxwright.deployment.service.limits import Limits
from boxwright.runtime import Detector
from helpers.onnx_files import white_boxes

LIMITS = Limits(bytes=100_000, pixels=400_000, images=3, seconds=5, queue=8)


@pytest.fixture(scope="session")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return Detector(white_boxes(tmp_path_factory.mktemp("serve") / "model.onnx"), "cpu")


@pytest.fixture(autouse=True)
def one_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoders, "count", 1)


@pytest.fixture
def served(predictor: Detector) -> Iterator[Callable[..., TestClient]]:
    """A function that serves: ``served(images=2)`` with another limit, ``served(key="k")`` with a key."""
    clients: list[TestClient] = []

    def serve(detector: Any = predictor, key: str | None = None, **limits: Any) -> TestClient:
        client = TestClient(make_app(detector, replace(LIMITS, **limits), key), raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield serve
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(served: Callable[..., TestClient]) -> TestClient:
    return served()
