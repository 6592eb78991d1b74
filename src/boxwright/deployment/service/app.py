"""The routes of the service, with the OpenAPI description that comes of their types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, File, Form, HTTPException, Request, Response, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartParser

from boxwright import __version__
from boxwright.classes import class_positions
from boxwright.config import UserError, nearest
from boxwright.deployment.service.batching import Batcher
from boxwright.deployment.service.errors import Refused, described, in_words, refusal
from boxwright.deployment.service.limits import Limits
from boxwright.deployment.service.metrics import Metrics
from boxwright.deployment.service.middleware import Guard, NoRoomError, Room, no_room
from boxwright.deployment.service.schemas import Answer, Model
from boxwright.deployment.service.sequence_stream import DESCRIPTION, Lines, Watched, read_given
from boxwright.deployment.service.uploads import decode, from_base64
from boxwright.runtime.coco import coco_data_set
from boxwright.runtime.predictor_base import BasePredictor

PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/write.js": "write.js"}
_OPEN = frozenset([*_PAGE_FILES, "/healthz"])  # these need no key: there is nothing of the user's in them
_POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'"
_DECODERS = 2  # threads; each may hold a decoded image of the most pixels
_FAULTS = described(400, 401, 408, 413, 422, 500, 503)

Threshold = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, description="Objects with a score over this.")]
_GIVEN = (
    'Objects that are known, with which the sentence begins: a JSON list of {"category": name, "bbox": [x, y, width, '
    "height]}."
)
_ADVICE = ": ask for objects="  # of a detector to who calls it from Python; there is no such thing to ask here
_SEVERAL = ("images", "classes")  # fields that may be repeated
_CLASSES = "Names of the classes to look for; by default all."


class Asked(BaseModel):
    """Images as text."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[str], Field(min_length=1, description="Each an image file in base64.")]
    threshold: Threshold = 0.5
    classes: Annotated[list[str], Field(description=_CLASSES)] = []


class Service:
    """What the routes share.

    Args:
        detector: who finds.
        limits: what is taken in.
    """

    def __init__(self, detector: BasePredictor, limits: Limits):
        limits.check()
        self.detector, self.limits, self.metrics = detector, limits, Metrics()
        self.room = Room(limits.queue, self.metrics)
        self.batcher = Batcher(detector, told=self.metrics.computed)
        self.decoders = ThreadPoolExecutor(_DECODERS, "decoder")

    def close(self) -> None:
        """Let what was taken in be computed, then stop."""
        self.decoders.shutdown()
        self.batcher.close()

    def wait(self) -> int:
        """Seconds after which all that waits will have been computed."""
        return self.batcher.wait(self.room.taken)

    async def answer(self, images: Sequence[tuple[str, bytes]], threshold: float, classes: Sequence[str]) -> Response:
        """What is in these images, each with its name."""
        self.check_count(len(images))
        try:
            wanted = class_positions(list(classes) or None, self.detector.names)
        except UserError as error:
            raise Refused(422, f"classes: {error}") from None
        with self.room.take(len(images)):
            async with asyncio.timeout(self.limits.seconds):
                loop, limit = asyncio.get_running_loop(), self.limits.pixels
                ready = await _all(
                    loop.run_in_executor(self.decoders, decode, data, name, self.detector.image_size, limit)
                    for name, data in images
                )
                found = await _all(asyncio.wrap_future(self.batcher.submit(one, wanted)) for one in ready)
        above = [detections.above(threshold) for detections in found]
        predicted = zip([name for name, _ in images], [one.size for one in ready], above, strict=True)
        answer = coco_data_set(predicted, self.detector.names)
        return Response(json.dumps(answer), media_type="application/json")

    async def watch(self, data: bytes, name: str, given: str) -> Response:
        """The sentence of an image, line by line as it is written; nothing is sent before its first object stands."""
        if not self.detector.generates_tokens:
            said = "this detector does not write; only pix2seq and patchseq can be watched."
            raise Refused(422, said)
        loop, limits, side = asyncio.get_running_loop(), self.limits, self.detector.image_size
        with ExitStack() as held:
            held.enter_context(self.room.take(1))
            async with asyncio.timeout(limits.seconds):
                ready = await loop.run_in_executor(self.decoders, decode, data, name, side, limits.pixels)
                known = read_given(given, ready.size, self.detector)
                watched = Watched(lambda: self.detector.stream_tokens(ready, known))
                held.callback(watched.stop)
                self.batcher.write(watched.sentence)
                try:
                    await watched.begun()
                except UserError as error:
                    raise Refused(422, f"{str(error).partition(_ADVICE)[0].rstrip('.')}.") from None
            return Lines(watched, limits.seconds, held.pop_all())

    def check_count(self, images: int) -> None:
        """Refuse too many."""
        if images > self.limits.images:
            raise Refused(413, f"{images} images are over the limit of {self.limits.images} a request.")


async def _all(coming: Any) -> list[Any]:
    """All results; of several errors the first, once none is at work any more."""
    done = await asyncio.gather(*coming, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return done


def make_app(detector: BasePredictor, limits: Limits = Limits(), key: str | None = None) -> FastAPI:  # noqa: B008
    """The service as an ASGI application.

    Args:
        detector: who finds; it is called by one thread, with batches.
        limits: what is taken in.
        key: what callers must send as ``Authorization: Bearer``; None lets anybody ask.

    Raises:
        UserError: for limits that let nothing through.
    """
    service = Service(detector, limits)
    # An upload over this would go into a file; no body that passes `Guard` is.
    MultiPartParser.spool_max_size = max(MultiPartParser.spool_max_size, limits.bytes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    security = [] if key is None else [Security(HTTPBearer(auto_error=False))]  # `Guard` looks at it; this describes it
    app = FastAPI(
        title="boxwright", version=__version__, summary="Finds objects in images.", lifespan=lifespan,
        docs_url=None, redoc_url=None, dependencies=security,  # FastAPI's pages would fetch scripts from elsewhere
        redirect_slashes=False,
    )  # fmt: skip
    _add_routes(app, service)
    _add_page(app)
    _add_faults(app, service)
    known = frozenset(path for route in app.routes if (path := getattr(route, "path", None)))
    app.add_middleware(
        Guard, limits=limits, room=service.room, metrics=service.metrics, key=key, known=known, open_paths=_OPEN,
        wait=service.wait,
    )  # fmt: skip
    return app


def _takes(*fields: str) -> Callable[[Request], Awaitable[None]]:
    """What refuses form fields other than these, one field twice, and parameters in the address: they would do
    nothing, unnoticed.
    """

    async def check(request: Request) -> None:
        if request.query_params:
            named = ", ".join(request.query_params)
            raise Refused(422, f"{named}: send it in the body; behind the ? of an address nothing is read.")
        form = await request.form() if fields else FormData()
        for name in form:
            if name not in fields:
                hint = f"{nearest(name, fields)}; there are {', '.join(fields)}."
                raise Refused(422, f"there is no field {name[:50]!r}{hint}")
            if name not in _SEVERAL and len(form.getlist(name)) > 1:
                raise Refused(422, f"{name}: send it once, not {len(form.getlist(name))} times.")

    return check


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/detect", response_model=Answer, responses=_FAULTS, summary="Find objects in uploaded files",
        dependencies=[Depends(_takes("images", "threshold", "classes"))],
    )  # fmt: skip
    async def detect(
        images: Annotated[list[UploadFile], File(description="Image files.")],
        threshold: Annotated[Threshold, Form()] = 0.5,
        classes: Annotated[list[str], Form(description=_CLASSES)] = [],  # noqa: B006
    ) -> Response:
        service.check_count(len(images))
        named = [(file.filename or f"image {i}", await file.read()) for i, file in enumerate(images, 1)]
        return await service.answer(named, threshold, classes)

    @app.post(
        "/detect/base64", response_model=Answer, responses=_FAULTS, summary="Find objects in images as text",
        dependencies=[Depends(_takes())],
    )  # fmt: skip
    async def detect_base64(asked: Asked) -> Response:
        service.check_count(len(asked.images))
        names = [f"image {i}" for i in range(1, len(asked.images) + 1)]
        named = [(name, from_base64(text, name)) for name, text in zip(names, asked.images, strict=True)]
        return await service.answer(named, asked.threshold, asked.classes)

    @app.post(
        "/write", response_class=Response, responses=DESCRIPTION | _FAULTS, summary="Watch objects being written",
        dependencies=[Depends(_takes("image", "given"))],
    )  # fmt: skip
    async def write(
        image: Annotated[UploadFile, File(description="An image file.")],
        given: Annotated[str, Form(description=_GIVEN)] = "[]",
    ) -> Response:
        return await service.watch(await image.read(), image.filename or "image", given)

    @app.get("/model", response_model=Model, responses=described(401, 500), summary="What the detector knows")
    async def model() -> Model:
        detector = service.detector
        return Model(names=list(detector.names), image_size=detector.image_size, writes=detector.generates_tokens)

    @app.get("/healthz", responses=described(500, 503), summary="Whether the service is well")
    async def healthz() -> dict[str, str]:
        if not service.batcher.alive:
            raise HTTPException(503, "the detector has stopped.", {"Retry-After": "10"})
        return {"status": "ok"}

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


def _add_faults(app: FastAPI, service: Service) -> None:
    """Each error as one sentence with its status."""

    async def told(_: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        return refusal(error.status_code, str(error.detail), error.headers)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return refusal(error.status, str(error))

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        for one in error.errors():
            if one["type"] == "json_invalid":
                said = f"the body is not JSON: {one['ctx']['error']}, at character {one['loc'][-1] + 1}."
                return refusal(400, said)
        return refusal(422, in_words(error.errors()))

    async def late(_: Request, error: Exception) -> Response:
        return no_room(service.wait())

    async def failed(_: Request, error: Exception) -> Response:
        return refusal(500, "the service failed; its log says why.")

    app.add_exception_handler(StarletteHTTPException, told)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(NoRoomError, late)
    app.add_exception_handler(TimeoutError, late)
    app.add_exception_handler(Exception, failed)
