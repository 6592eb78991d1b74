"""A service in this process, over a detector that finds the white box."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import RLock, Thread
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from boxwright.deployment.service import decoders
from boxwright.deployment.service.app import make_app
from boxwright.deployment.service.limits import Limits
from boxwright.deployment.service.protocol import server
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
        self._lock = RLock()  # several services start at once, and one that is closed may not wait for its answer

    def wait(self) -> None:
        with self._lock:
            super().wait()

    def ask(self, *request: Any) -> Any:
        with self._lock:
            try:
                return super().ask(*request)
            except Exception:
                super().end()
                raise

    def end(self) -> None:
        """Go on."""


@pytest.fixture(scope="package")
def shared_process() -> Iterator[SharedProcess]:
    process = SharedProcess()
    yield process
    super(SharedProcess, process).end()


@pytest.fixture(scope="package", autouse=True)
def one_decoder(shared_process: SharedProcess) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders.Decoders, "count", 1)
        patch.setattr(decoders, "Process", lambda: shared_process)
        yield


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


@pytest.fixture(scope="module")
def live_servers(predictor: Detector) -> Iterator[Callable[..., int]]:
    """A function that serves on a socket and returns the port; arguments as of `make_app`, or limits."""
    with ExitStack() as stack:

        def serve(detector: Any = predictor, key: Any = None, hosts: Any = None, cors: Any = (), **limits: Any) -> int:
            app = make_app(detector, replace(LIMITS, **limits), key, hosts, cors)
            return stack.enter_context(live(app))

        yield serve


@contextmanager
def live(app: FastAPI) -> Iterator[int]:
    """The port of an application that is served by a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = server(app, LIMITS.seconds)
        thread = Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        running.should_exit = True
        thread.join()
