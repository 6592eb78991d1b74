"""Objects sent while they are generated: one line of JSON for each token and each object."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Annotated, Any

from fastapi.responses import StreamingResponse
from pydantic import FailFast, TypeAdapter, ValidationError
from starlette.types import Receive, Scope, Send

from boxwright.classes import position
from boxwright.config import UserError, require
from boxwright.deployment.service.batching import ObjectParts, SequenceJob, StreamItem
from boxwright.deployment.service.errors import in_words
from boxwright.deployment.service.json_body import check_json
from boxwright.deployment.service.limits import RequestError
from boxwright.deployment.service.schemas import Given, LastLine, ObjectLine, WordLine
from boxwright.runtime.predictor_base import BasePredictor
from boxwright.runtime.sequence_types import Box, GivenObjects, StreamObject, StreamToken, is_inside

_ROUNDED = 0.01  # pixels by which a box may reach out of the image, as numbers in COCO files are rounded
_LISTS = TypeAdapter(Annotated[list[Given], FailFast()])
_SCHEMA = {"oneOf": [kind.model_json_schema() for kind in (WordLine, ObjectLine, LastLine)]}
DESCRIPTION = {200: {"description": "JSON, line by line.", "content": {"application/x-ndjson": {"schema": _SCHEMA}}}}


def read_given(text: str, size: tuple[int, int], detector: BasePredictor) -> GivenObjects:
    """Given objects from JSON.

    Args:
        text: a list of `Given`.
        size: width and height of the image.
        detector: which must know the classes.

    Raises:
        RequestError: for what is no such list, an unknown class, or a box outside the image.
    """
    check_json(text.encode("utf-8", "replace"))
    try:
        objects = _LISTS.validate_json(text)
    except ValidationError as error:
        reasons = in_words([{**one, "loc": ("given", *one["loc"])} for one in error.errors()])
        raise RequestError(422, f"given: {reasons}") from None
    return [_checked(one, size, detector.names) for one in objects]


def _checked(one: Given, size: tuple[int, int], names: Sequence[str]) -> tuple[str, Box]:
    """A given object; an error shows its box as it was sent."""
    box = _corners(one.bbox, size)
    outside = (
        f"the bbox {list(one.bbox)} is no box x, y, width, height inside its image of {size[0]} x {size[1]} pixels."
    )
    try:
        position(one.category, names)
        require(is_inside(box, size), outside)
    except UserError as error:
        raise RequestError(422, f"given: {error}") from None
    return one.category, box


def _corners(bbox: tuple[float, ...], size: tuple[int, int]) -> Box:
    x1, y1, width, height = bbox
    ends = zip((x1 + width, y1 + height), size, strict=True)
    x2, y2 = (limit if limit < end <= limit + _ROUNDED else end for end, limit in ends)
    return x1, y1, x2, y2


def to_line(part: StreamToken | StreamObject) -> bytes:
    """A token or an object as a line."""
    if isinstance(part, StreamToken):
        return _line(
            object=part.object, slot=part.slot, text=part.text, probability=round(part.probability, 5), given=part.given
        )
    x1, y1, x2, y2 = part.box
    return _line(
        object=part.number, category_id=part.label + 1, name=part.name,
        bbox=[round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)], score=round(part.score, 5), given=part.given,
    )  # fmt: skip


def _line(**values: Any) -> bytes:
    return json.dumps(values).encode() + b"\n"


class ObjectStream:
    """The objects of a `SequenceJob`, received by the event loop.

    Args:
        begin: as in `SequenceJob`.
    """

    def __init__(self, begin: Callable[[], Iterator[StreamToken | StreamObject]]):
        self._items: asyncio.Queue[StreamItem] = asyncio.Queue()
        self._first: list[ObjectParts | None] = []
        loop = asyncio.get_running_loop()

        def send(item: StreamItem) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._items.put_nowait, item)

        self.job = SequenceJob(begin, send)

    async def wait_for_first(self) -> None:
        """Wait for the first object, which `next` then returns; raise what prevents it."""
        self._first.append(await self._receive())

    async def next(self, end: float) -> ObjectParts | None:
        """The next object, None after the last; `TimeoutError` when the loop's clock reaches `end`."""
        if self._first:
            return self._first.pop()
        async with asyncio.timeout_at(end):
            return await self._receive()

    def stop(self) -> None:
        """Stop generating: nobody needs the rest."""
        self.job.stopped = True

    async def _receive(self) -> ObjectParts | None:
        item = await self._items.get()
        if isinstance(item, Exception):
            raise item
        return item


class ObjectStreamResponse(StreamingResponse):
    """Sends objects as they come. When the caller goes away or takes too long, generation stops.

    Args:
        objects: whose first object is there.
        seconds: for the rest to be generated, and again for it to be received.
        held: closed at the end; it stops the stream and frees its place.
    """

    media_type = "application/x-ndjson"

    def __init__(self, objects: ObjectStream, seconds: float, held: AbstractContextManager[Any]):
        self.objects, self.seconds, self.held = objects, seconds, held
        super().__init__(self._lines(), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self.held, suppress(TimeoutError):  # the caller doesn't receive it
            async with asyncio.timeout(2 * self.seconds):
                await super().__call__(scope, receive, send)

    async def _lines(self) -> AsyncIterator[bytes]:
        end = asyncio.get_running_loop().time() + self.seconds
        try:
            while parts := await self.objects.next(end):
                yield b"".join(map(to_line, parts))
        except TimeoutError:
            yield _line(done=False, detail=f"the sentence took over {self.seconds:g} s.")
        except Exception:
            yield _line(done=False, detail="the service failed; its log says why.")
            raise
        else:
            yield _line(done=True)
