"""What the layer around the routes does with bodies."""

import asyncio
from itertools import pairwise
from typing import Any

from boxwright.deployment.service.limits import Limits
from boxwright.deployment.service.middleware import Uploads, _Body

SCOPE = {"type": "http", "method": "POST", "headers": [(b"content-length", b"5")]}


def test_many_parts_leave_turns_to_others():
    async def most_at_once() -> int:
        uploads, worked = Uploads(100), 0

        async def part() -> None:
            nonlocal worked
            await uploads.turn()
            worked += 1

        parts = [asyncio.create_task(part()) for _ in range(100)]
        steps = [0]
        while not all(one.done() for one in parts):
            await asyncio.sleep(0)  # all others have one turn
            steps.append(worked)
        assert worked == 100
        return max(now - before for before, now in pairwise(steps))

    assert asyncio.run(most_at_once()) <= 8


def test_an_answer_is_complete_although_the_service_ends_while_it_waits_for_the_rest_of_a_body():
    async def sent_until_the_end() -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def answer() -> None:
            answering = _Body(asyncio.Event().wait, SCOPE, Limits()).before_the_end_of(send)
            await answering({"type": "http.response.start", "status": 413})
            await answering({"type": "http.response.body", "body": b"too long"})

        task = asyncio.create_task(answer())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        return sent

    start, *parts = asyncio.run(sent_until_the_end())
    assert start["status"] == 413
    assert [part.get("body", b"") for part in parts] == [b"too long", b""]
    assert [part.get("more_body", False) for part in parts] == [True, False]
