"""A service in this process, over a detector that finds the white box."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Lock
from typing import Any

import pytest
from fastapi.testclient import TestClient

from boxwright.deployment.service import decoders
from boxwright.deployment.service.app import make_app
from boxwright.deployment.service.limits import Limits
from boxwright.runtime import Detector
from helpers.onnx_files import white_boxes

LIMITS = Limits(bytes=100_000, pixels=400_000, images=3, seconds=5, queue=8)


@pytest.fixture(scope="session")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return Detector(white_boxes(tmp_path_factory.mktemp("serve") / "model.onnx"), "cpu")


class SharedProcess(decoders.Process):
    """Decodes for one service after the other, as starting a process takes a while."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = Lock()  # a service that is closed may not have waited for its answer

    def ask(self, *request: Any) -> Any:
        with self._lock:
            try:
                return super().ask(*request)
            except Exception:
                super().end()
                raise

    def end(self) -> None:
        """Go on."""


@pytest.fixture(scope="session")
def shared_process() -> Iterator[SharedProcess]:
    process = SharedProcess()
    yield process
    super(SharedProcess, process).end()


@pytest.fixture(autouse=True)
def one_decoder(monkeypatch: pytest.MonkeyPatch, shared_process: SharedProcess) -> None:
    monkeypatch.setattr(decoders.Decoders, "count", 1)
    monkeypatch.setattr(decoders, "Process", lambda: shared_process)


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
