"""JSON of callers, read in bounded time and memory: a few megabytes of it can make millions of objects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

MOST_VALUES = 10_000  # images and classes are few, and base64 has no commas
MOST_ESCAPES = 2**19  # some write / and + of base64 as escapes, a 32nd of all characters; each takes long to parse
_MOST_DIGITS = 400  # of a number; of whole numbers, Python has a limit


def check_json(text: bytes) -> None:
    """Refuse JSON that may have very many values or escapes, before it is parsed."""
    if text.count(b",") >= MOST_VALUES:  # there are no more values than commas, but for nested ones, which are few
        raise HTTPException(413, f"the JSON has over {MOST_VALUES:,} values, which is the limit.")
    if text.count(b"\\") > MOST_ESCAPES:
        raise HTTPException(413, f"the JSON has over {MOST_ESCAPES:,} escapes, which is the limit.")


def _parse_float(text: str) -> float:
    if len(text) > _MOST_DIGITS:
        raise HTTPException(400, f"the JSON has a number of over {_MOST_DIGITS} characters.")
    return float(text)


class _BoundedRequest(Request):
    parsing: asyncio.Lock

    async def json(self) -> Any:
        """The parsed body; the body itself is forgotten."""
        body, self._body = await self.body(), b""
        check_json(body)
        async with self.parsing:  # while a text is parsed, Python does nothing else
            return await asyncio.to_thread(json.loads, body, parse_float=_parse_float)


class BoundedRoute(APIRoute):
    """A route whose JSON body is bounded, and parsed in a thread."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI asks for it."""
        handle, parsing = super().get_route_handler(), asyncio.Lock()

        async def bounded(request: Request) -> Response:
            one = _BoundedRequest(request.scope, request.receive)
            one.parsing = parsing
            return await handle(one)

        return bounded
