"""A sentence sent while it is written: one line of JSON for each word and each object."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Annotated, Any

from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.types import Receive, Scope, Send

from boxwright.classes import position
from boxwright.config import UserError, require
from boxwright.deployment.service.batching import Object, Sentence, Told
from boxwright.deployment.service.errors import Refused, in_words
from boxwright.runtime.predictor_base import BasePredictor
from boxwright.runtime.sequence_types import Box, GivenObjects, StreamObject, StreamToken, is_inside

_ROUNDED = 0.01  # pixels: what a COCO file loses by rounding may reach out of the image


class Given(BaseModel):
    """A known object: its class, and x, y, width, height in pixels of the image as displayed."""

    model_config = ConfigDict(extra="forbid")

    category: str
    bbox: tuple[float, float, float, float]


class WordLine(BaseModel):
    """A word of the object number `object`."""

    object: int
    slot: Annotated[str, Field(description="y1, x1, y2, x2, class; x1 y1 or x2 y2 for a whole corner; end.")]
    text: Annotated[str, Field(description="Pixels of the image, a class, or noise.")]
    probability: float
    given: bool


class ObjectLine(BaseModel):
    """An object of which all words are written; `bbox` is x, y, width, height in pixels of the image as displayed."""

    object: int
    category_id: int
    name: str
    bbox: tuple[float, float, float, float]
    score: float
    given: bool


class LastLine(BaseModel):
    """The sentence is complete, or why it is not."""

    done: bool
    detail: str | None = None


_LISTS = TypeAdapter(list[Given])
_SCHEMA = {"oneOf": [kind.model_json_schema() for kind in (WordLine, ObjectLine, LastLine)]}
DESCRIPTION = {200: {"description": "JSON, line by line.", "content": {"application/x-ndjson": {"schema": _SCHEMA}}}}


def read_given(text: str, size: tuple[int, int], detector: BasePredictor) -> GivenObjects:
    """Known objects from JSON.

    Args:
        text: a list of `Given`.
        size: width and height of the image.
        detector: who must know the classes.

    Raises:
        Refused: for what is no such list, an unknown class, or a box outside the image.
    """
    try:
        objects = _LISTS.validate_json(text)
    except ValidationError as error:
        said = in_words([{**one, "loc": ("given", *one["loc"])} for one in error.errors()])
        raise Refused(422, f"given: {said}") from None
    return [_known(one, size, detector.names) for one in objects]


def _known(one: Given, size: tuple[int, int], names: Sequence[str]) -> tuple[str, Box]:
    """A known object, or why it is none: its box in the form in which it was sent."""
    box = _corners(one.bbox, size)
    said = f"the bbox {list(one.bbox)} is no box x, y, width, height inside its image of {size[0]} x {size[1]} pixels."
    try:
        position(one.category, names)
        require(is_inside(box, size), said)
    except UserError as error:
        raise Refused(422, f"given: {error}") from None
    return one.category, box


def _corners(bbox: tuple[float, ...], size: tuple[int, int]) -> Box:
    x1, y1, width, height = bbox
    ends = zip((x1 + width, y1 + height), size, strict=True)
    x2, y2 = (limit if limit < end <= limit + _ROUNDED else end for end, limit in ends)
    return x1, y1, x2, y2


def line(told: StreamToken | StreamObject) -> bytes:
    """A word or an object as a line."""
    if isinstance(told, StreamToken):
        return _line(
            object=told.object, slot=told.slot, text=told.text, probability=round(told.probability, 5), given=told.given
        )
    x1, y1, x2, y2 = told.box
    return _line(
        object=told.number, category_id=told.label + 1, name=told.name,
        bbox=[round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)], score=round(told.score, 5), given=told.given,
    )  # fmt: skip


def _line(**values: Any) -> bytes:
    return json.dumps(values).encode() + b"\n"


class Watched:
    """A sentence of the detector's thread, as the event loop sees it.

    Args:
        begin: of `BasePredictor.write`.
    """

    def __init__(self, begin: Callable[[], Iterator[StreamToken | StreamObject]]):
        self._told: asyncio.Queue[Told] = asyncio.Queue()
        self._first: list[Object | None] = []
        loop = asyncio.get_running_loop()

        def tell(told: Told) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._told.put_nowait, told)

        self.sentence = Sentence(begin, tell)

    async def begun(self) -> None:
        """Wait for the first object, which `next` gives again; raise what prevents it."""
        self._first.append(await self._take())

    async def next(self, end: float) -> Object | None:
        """The next object, None behind the last; `TimeoutError` when the clock of the loop says `end`."""
        if self._first:
            return self._first.pop()
        async with asyncio.timeout_at(end):
            return await self._take()

    def stop(self) -> None:
        """Nobody listens any more."""
        self.sentence.stopped = True

    async def _take(self) -> Object | None:
        told = await self._told.get()
        if isinstance(told, Exception):
            raise told
        return told


class Lines(StreamingResponse):
    """The answer that follows the writer. When the caller goes away or takes too long, the writer stops.

    Args:
        watched: with its first object told already.
        seconds: for the rest to be written, and again for it to be taken away.
        held: is left at the end, and lets go of the writer and its place.
    """

    media_type = "application/x-ndjson"

    def __init__(self, watched: Watched, seconds: float, held: AbstractContextManager[Any]):
        self.watched, self.seconds, self.held = watched, seconds, held
        super().__init__(self._lines(), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self.held, suppress(TimeoutError):  # nobody takes it
            async with asyncio.timeout(2 * self.seconds):
                await super().__call__(scope, receive, send)

    async def _lines(self) -> AsyncIterator[bytes]:
        end = asyncio.get_running_loop().time() + self.seconds
        try:
            while told := await self.watched.next(end):
                yield b"".join(map(line, told))
        except TimeoutError:
            yield _line(done=False, detail=f"the sentence took over {self.seconds:g} s.")
        except Exception:
            yield _line(done=False, detail="the service failed; its log says why.")
            raise
        else:
            yield _line(done=True)
