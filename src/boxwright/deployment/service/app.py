"""The routes of the service; their types make its OpenAPI description."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, File, Form, HTTPException, Request, Response, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartParser
from starlette.middleware.cors import CORSMiddleware

from boxwright import __version__
from boxwright.classes import class_positions
from boxwright.config import UserError, nearest
from boxwright.deployment.service.batching import Batcher
from boxwright.deployment.service.decoders import HELD_PIXELS, Decoders
from boxwright.deployment.service.errors import described, error_response, in_words, refusal
from boxwright.deployment.service.json_body import BoundedRoute
from boxwright.deployment.service.limits import Limits, RequestError
from boxwright.deployment.service.metrics import Metrics
from boxwright.deployment.service.middleware import (
    BrowserMiddleware,
    Capacity,
    OverCapacityError,
    ServiceMiddleware,
    over_capacity,
)
from boxwright.deployment.service.schemas import CLASSES, Answer, Asked, Health, Model, Threshold
from boxwright.deployment.service.sequence_stream import DESCRIPTION, ObjectStream, ObjectStreamResponse, read_given
from boxwright.deployment.service.uploads import from_base64
from boxwright.detections import Detections
from boxwright.runtime.coco import coco_data_set
from boxwright.runtime.predictor_base import BasePredictor

T = TypeVar("T")

PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/write.js": "write.js"}
_OPEN = frozenset([*_PAGE_FILES, "/healthz"])  # these need no key: they hold no data of the user
_POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'"
_ERRORS = described(400, 401, 408, 413, 422, 500, 503)

_GIVEN = (
    'Objects that are known, with which the sentence begins: a JSON list of {"category": name, "bbox": [x, y, width, '
    "height]}."
)
_PYTHON_ADVICE = ": ask for objects="  # in errors for callers from Python; there is no such field here
_SEVERAL = ("images", "classes")  # fields that may be repeated


class Service:
    """What the routes share.

    Args:
        detector: predicts.
        limits: of requests.
        decoders: of uploads; closed with the service.
    """

    def __init__(self, detector: BasePredictor, limits: Limits, decoders: Decoders):
        limits.check()
        self.detector, self.limits, self.metrics = detector, limits, Metrics()
        self.thresholds = detector.thresholds.of(detector.names)
        self._longest_name = max(200, *map(len, detector.names))
        self.capacity = Capacity(limits.queue, self.metrics)
        self.batcher = Batcher(detector, on_computed=self.metrics.count_batch)
        self.decoders = decoders
        self.metrics.decoders_busy.set_function(lambda: self.decoders.busy)
        self.metrics.decoders_killed.set_function(lambda: self.decoders.killed)
        self._sequence_decoding = asyncio.Lock()

    def close(self) -> None:
        """Stop, without waiting for long."""
        self.decoders.close()
        self.batcher.close()

    def health(self) -> Health:
        """What it is doing."""
        decoders = self.decoders
        return Health(status="ok", images=self.capacity.used, decoders=decoders.count, decoders_busy=decoders.busy)

    def retry_after(self) -> int:
        """Expected seconds until everything that is waiting has been computed."""
        return self.batcher.seconds_for(self.capacity.used)

    async def detect(
        self, images: Sequence[tuple[str, bytes]], threshold: float | None, classes: Sequence[str]
    ) -> Response:
        """The objects in images (name and file) as a COCO data set; without a threshold, each class has its own."""
        self.check_count(len(images))
        wanted = self._positions(classes)
        with self.capacity.reserve(len(images)):
            async with asyncio.timeout(self.limits.seconds):
                found = await _all(self._detect(name, data, wanted) for name, data in images)
        least = self.thresholds if threshold is None else threshold
        predicted = [
            (name, size, detections.above(least)) for (name, _), (size, detections) in zip(images, found, strict=True)
        ]
        answer = coco_data_set(predicted, self.detector.names)
        return Response(json.dumps(answer), media_type="application/json")

    def _positions(self, classes: Sequence[str]) -> list[int] | None:
        """Positions of the named classes; without names None, which is all."""
        long = next((name for name in classes if len(name) > self._longest_name), None)
        if long is not None:  # an error would quote it
            raise RequestError(422, f"classes: no class has a name of {len(long):,} characters.")
        try:
            return class_positions(list(dict.fromkeys(classes)) or None, self.detector.names)
        except UserError as error:
            raise RequestError(422, f"classes: {error}") from None

    async def _detect(self, name: str, data: bytes, wanted: Sequence[int] | None) -> tuple[tuple[int, int], Detections]:
        """Size and objects of an image."""
        image = await self.decoders.decode(data, name, self.detector.image_size)
        with self.decoders.hold(image):
            return image.size, await asyncio.wrap_future(self.batcher.submit(image, wanted))

    async def stream_objects(self, data: bytes, name: str, given: str) -> Response:
        """The objects of an image while they are generated; nothing is sent before the first one is complete."""
        if not self.detector.generates_tokens:
            raise RequestError(422, "this detector does not write; only pix2seq and patchseq can be watched.")
        limits = self.limits
        with ExitStack() as held:
            held.enter_context(self.capacity.reserve(1))
            async with asyncio.timeout(limits.seconds):
                async with self._sequence_decoding:  # sequences may wait long, and leave room for other images
                    await self.decoders.room(HELD_PIXELS // 2)
                    image = await self.decoders.decode(data, name, self.detector.image_size)
                    held.enter_context(self.decoders.hold(image))
                given_objects = read_given(given, image.size, self.detector)
                objects = ObjectStream(lambda: self.detector.stream_tokens(image, given_objects))
                held.callback(objects.stop)
                self.batcher.submit_sequence(objects.job)
                try:
                    await objects.wait_for_first()
                except UserError as error:
                    raise RequestError(422, f"{str(error).partition(_PYTHON_ADVICE)[0].rstrip('.')}.") from None
            return ObjectStreamResponse(objects, limits.seconds, held.pop_all())

    def check_count(self, images: int) -> None:
        """Refuse too many images."""
        if images > self.limits.images:
            raise RequestError(413, f"{images} images are over the limit of {self.limits.images} a request.")


def _decoded_texts(texts: list[str]) -> list[tuple[str, bytes]]:
    """Name and file of each image; its text is removed."""
    names = [f"image {i}" for i in range(1, len(texts) + 1)]
    return [(name, from_base64(texts.pop(0), name)) for name in names]


async def _contents(file: UploadFile) -> bytes:
    """The bytes of an upload, which keeps none of them."""
    contents = await file.read()
    await file.close()
    return contents


async def _all(coming: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; if one fails, its error, and the others are given up."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in coming]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def make_app(
    detector: BasePredictor,
    limits: Limits = Limits(),  # noqa: B008
    key: str | None = None,
    hosts: Sequence[str] | None = None,
    cors: Sequence[str] = (),
    decoders: Decoders | None = None,
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        detector: predicts; called by one thread, with batches.
        limits: of requests.
        key: what callers must send as ``Authorization: Bearer``; None needs none.
        hosts: without a key, the names by which the service may be addressed, without ports; None is any.
        cors: the origins of web pages that may use the service, as ``https://example.org``; "*" is any. Without a key,
            requests of other pages than its own are refused.
        decoders: of uploads, if they are started already.

    Raises:
        UserError: for limits that let nothing through.
    """
    service = Service(detector, limits, decoders or Decoders(limits))
    # Larger uploads would be written to a file; `ServiceMiddleware` lets none of them pass.
    MultiPartParser.spool_max_size = max(MultiPartParser.spool_max_size, limits.bytes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.decoders.ready()
        yield
        await asyncio.to_thread(service.close)

    # `ServiceMiddleware` checks the key; this describes it.
    security = [] if key is None else [Security(HTTPBearer(auto_error=False))]
    app = FastAPI(
        title="boxwright", version=__version__, summary="Finds objects in images.", lifespan=lifespan,
        docs_url=None, redoc_url=None, dependencies=security,  # FastAPI's pages would fetch scripts from elsewhere
        redirect_slashes=False,
    )  # fmt: skip
    app.router.route_class = BoundedRoute
    _add_routes(app, service)
    _add_page(app)
    _add_error_handlers(app, service)
    known = frozenset(path for route in app.routes if (path := getattr(route, "path", None)))
    app.add_middleware(
        ServiceMiddleware, limits=limits, capacity=service.capacity, metrics=service.metrics, key=key, known=known,
        open_paths=_OPEN, retry_after=service.retry_after,
    )  # fmt: skip
    if key is None:
        app.add_middleware(BrowserMiddleware, hosts=hosts, origins=cors)
    if cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=cors, allow_methods=["GET", "POST"], allow_headers=["Authorization"],
            expose_headers=["Retry-After"], allow_private_network=True,
        )  # fmt: skip
    return app


def _takes(*fields: str) -> Callable[[Request], Awaitable[None]]:
    """A check that refuses other form fields, repeated ones and parameters in the address, which would be ignored."""

    async def check(request: Request) -> None:
        if request.query_params:
            named = ", ".join(request.query_params)
            raise RequestError(422, f"{named}: send it in the body; behind the ? of an address nothing is read.")
        form = await request.form() if fields else FormData()
        for name in form:
            if name not in fields:
                hint = f"{nearest(name, fields)}; there are {', '.join(fields)}."
                raise RequestError(422, f"there is no field {name[:50]!r}{hint}")
            if name not in _SEVERAL and len(form.getlist(name)) > 1:
                raise RequestError(422, f"{name}: send it once, not {len(form.getlist(name))} times.")

    return check


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/detect", response_model=Answer, responses=_ERRORS, summary="Find objects in uploaded files",
        dependencies=[Depends(_takes("images", "threshold", "classes"))],
    )  # fmt: skip
    async def detect(
        images: Annotated[list[UploadFile], File(description="Image files.")],
        threshold: Annotated[Threshold | None, Form()] = None,
        classes: Annotated[list[str], Form(description=CLASSES)] = [],  # noqa: B006
    ) -> Response:
        service.check_count(len(images))
        named = [(file.filename or f"image {i}", await _contents(file)) for i, file in enumerate(images, 1)]
        return await service.detect(named, threshold, classes)

    @app.post(
        "/detect/base64", response_model=Answer, responses=_ERRORS, summary="Find objects in images as text",
        dependencies=[Depends(_takes())],
    )  # fmt: skip
    async def detect_base64(request: Asked) -> Response:
        service.check_count(len(request.images))
        texts, request.images = request.images, []
        named = await asyncio.to_thread(_decoded_texts, texts)
        return await service.detect(named, request.threshold, request.classes)

    @app.post(
        "/write", response_class=Response, responses=DESCRIPTION | _ERRORS, summary="Watch objects being written",
        dependencies=[Depends(_takes("image", "given"))],
    )  # fmt: skip
    async def write(
        image: Annotated[UploadFile, File(description="An image file.")],
        given: Annotated[str, Form(description=_GIVEN)] = "[]",
    ) -> Response:
        return await service.stream_objects(await _contents(image), image.filename or "image", given)

    @app.get("/model", response_model=Model, responses=described(401, 500), summary="What the detector knows")
    async def model() -> Model:
        detector = service.detector
        return Model(
            names=list(detector.names), image_size=detector.image_size, writes=detector.generates_tokens,
            threshold=detector.thresholds.overall, thresholds=service.thresholds,
        )  # fmt: skip

    @app.get("/healthz", responses=described(500, 503), summary="Whether the service is well")
    async def healthz() -> Health:
        if not service.batcher.alive:
            raise HTTPException(503, "the detector has stopped.", {"Retry-After": "10"})
        return service.health()

    @app.get("/metrics", responses=described(401, 500), summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.content_type)


def _add_page(app: FastAPI) -> None:
    def add(path: str, file: str) -> None:
        async def page() -> FileResponse:
            return FileResponse(PAGE / file, headers={"Content-Security-Policy": _POLICY})

        app.add_api_route(path, page, include_in_schema=False)

    for path, file in _PAGE_FILES.items():
        add(path, file)


def _add_error_handlers(app: FastAPI, service: Service) -> None:
    """Answer each error with its status and one sentence."""

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        return error_response(error.status_code, str(error.detail), error.headers)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return refusal(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        for one in error.errors():
            if one["type"] == "json_invalid":
                reason = f"the body is not JSON: {one['ctx']['error']}, at character {one['loc'][-1] + 1}."
                return error_response(400, reason)
        return error_response(422, in_words(error.errors()))

    async def overloaded(_: Request, error: Exception) -> Response:
        return over_capacity(service.retry_after())

    async def failed(_: Request, error: Exception) -> Response:
        return error_response(500, "the service failed; its log says why.")

    app.add_exception_handler(StarletteHTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(RequestError, refused)
    app.add_exception_handler(OverCapacityError, overloaded)
    app.add_exception_handler(TimeoutError, overloaded)
    app.add_exception_handler(Exception, failed)
