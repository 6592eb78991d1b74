"""The route that sends objects while they are generated."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from boxwright.deployment.service.app import make_app
from boxwright.detections import Detections
from boxwright.inference.predictor import Predictor
from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig
from boxwright.runtime.predictor_base import BasePredictor
from boxwright.runtime.sequence_types import StreamObject, StreamToken
from helpers.uploads import picture

NAMES = ("box", "other")
TINY = Pix2SeqConfig(
    backbone="test_efficientnet", image_size=64, encoder_layers=1, encoder_dim=32, encoder_hidden=64, encoder_heads=4,
    decoder_layers=1, decoder_dim=24, decoder_hidden=48, decoder_heads=3, max_objects=4, length=20, bins=50,
    first_coordinate=120, vocabulary=180,
)  # fmt: skip


class RepeatingPredictor(BasePredictor):
    """Generates the same object again and again; notes its threads, and how many objects it generated."""

    names, image_size, generates_tokens = NAMES, 64, True

    def __init__(self, objects=3, pause=0.0, breaks_at=None):
        self.objects, self.pause, self.breaks_at = objects, pause, breaks_at
        self.generated, self.threads = 0, set()

    def detect(self, images, threshold, classes):
        self.threads.add(threading.get_ident())
        nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), self.names)
        return [nothing] * len(images)

    def stream_tokens(self, image, given=(), classes=None):
        number = 0
        while number < self.objects:
            self.threads.add(threading.get_ident())
            time.sleep(self.pause)
            if number == self.breaks_at:
                raise RuntimeError("cannot")
            yield StreamToken(number, "class", "box", 0.75)
            self.generated += 1
            yield StreamObject(number, (1.0, 2.0, 4.0, 6.0), 0, "box", 0.5)
            number += 1


def ask(client, data=None, **form):
    return client.post("/write", files={"image": ("a.png", data or picture(), "image/png")}, data=form)


def lines(answer):
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.splitlines()]


def reason_of(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["detail"]


def objects(items):
    return [one for one in items if "bbox" in one]


@pytest.fixture(
    scope="module", params=[{}, {"proposals": 20, "channels": 24, "depth": 1}], ids=["published", "copying"]
)
def tiny(request) -> Predictor:
    torch.manual_seed(0)
    return Predictor(Pix2Seq(replace(TINY, **request.param), NAMES, pretrained=False))


def test_each_word_and_each_object_is_a_line(served):
    word = {"object": 0, "slot": "class", "text": "box", "probability": 0.75, "given": False}
    whole = {
        "object": 0, "category_id": 1, "name": "box", "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5, "given": False,
    }  # fmt: skip
    assert lines(ask(served(RepeatingPredictor(2)))) == [
        word,
        whole,
        word | {"object": 1},
        whole | {"object": 1},
        {"done": True},
    ]


def test_a_sentence_says_what_is_detected(served, tiny):
    client = served(tiny)
    *items, last = lines(ask(client))
    assert last == {"done": True}
    assert [one["slot"] for one in items if "slot" in one] == ["y1", "x1", "y2", "x2", "class"] * 4
    found = client.post("/detect", files={"images": picture()}, data={"threshold": 0}).json()["annotations"]
    by_score = sorted(objects(items), key=lambda one: -one["score"])
    assert [(one["bbox"], one["category_id"]) for one in by_score] == [(r["bbox"], r["category_id"]) for r in found]


def test_given_objects_are_the_beginning(served, tiny):
    given = [{"category": "other", "bbox": [10, 20, 30, 30]}, {"category": "box", "bbox": [0.004, 0, 96, 64.009]}]
    items = lines(ask(served(tiny), given=json.dumps(given)))
    first, second, *others = objects(items)
    assert (first["name"], first["bbox"], first["score"], first["given"]) == ("other", [10, 20, 30, 30], 1, True)
    assert second["bbox"] == [0.004, 0, 95.996, 64]
    assert [one["given"] for one in others] == [False, False]
    assert all(one["given"] == (one["object"] < 2) for one in items[:-1])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("{", "given: "),
        ('{"category": "box"}', "given: "),
        ("[" * 10_000, "given: "),
        ('[{"category": "box"}]', "given: 0.bbox: Field required"),
        ('[{"category": "box", "bbox": [1, 2, 3]}]', "given: 0.bbox"),
        ('[{"category": "box", "bbox": [1, 2, 3, 4], "score": 1}]', "given: 0.score"),
        ('[{"category": "bix", "bbox": [1, 2, 3, 4]}]', "given: the detector doesn't know the class 'bix'"),
        (
            '[{"category": "box", "bbox": [90, 0, 7, 9]}]',
            "[90.0, 0.0, 7.0, 9.0] is no box x, y, width, height inside its image of 96 x 64 pixels.",
        ),
        ('[{"category": "box", "bbox": [-1, 0, 7, 9]}]', "inside its image"),
        ('[{"category": "box", "bbox": [5, 5, -1, 9]}]', "no box"),
        ('[{"category": "box", "bbox": [NaN, 0, 7, 9]}]', "given: "),
        (
            json.dumps([{"category": "box", "bbox": [0, 0, 9, 9]}] * 4),
            "4 objects are given, and no more than 4 can be generated, given ones included.",
        ),
    ],
)
def test_what_cannot_be_given_is_refused_before_the_first_line(served, tiny, given, reason):
    client = served(tiny, images=1, queue=1)  # no place is kept for what is refused
    refused = reason_of(ask(client, given=given), 422)
    assert reason in refused
    assert "ask for objects" not in refused
    assert len(objects(lines(ask(client)))) == 4


def test_other_faults_are_those_of_the_other_routes(served, client):
    assert "does not write" in reason_of(ask(client), 422)
    assert not client.get("/model").json()["writes"]
    writes = served(RepeatingPredictor())
    assert writes.get("/model").json()["writes"]
    assert "a.png cannot be read as an image" in reason_of(ask(writes, b"no image"), 400)
    assert "1000 x 500 pixels" in reason_of(ask(writes, picture((1000, 500))), 413)
    assert "100,000 bytes" in reason_of(ask(writes, bytes(200_000)), 413)
    assert "image" in reason_of(writes.post("/write", data={"given": "[]"}), 422)
    assert "image: send files, not text" in reason_of(writes.post("/write", data={"image": "hello"}), 422)
    twice = [("image", ("a.png", picture(), "image/png"))] * 2
    assert reason_of(writes.post("/write", files=twice), 422) == "image: send it once, not 2 times."
    assert "there is no field 'givn' (did you mean 'given'?)" in reason_of(ask(writes, givn="[]"), 422)
    assert "key" in reason_of(ask(served(RepeatingPredictor(), key="secret")), 401)
    assert reason_of(ask(served(RepeatingPredictor(breaks_at=0))), 500) == "the service failed; its log says why."


def test_what_fails_on_the_way_is_the_last_line(served):
    *items, last = lines(ask(served(RepeatingPredictor(breaks_at=1))))
    assert len(objects(items)) == 1
    assert last == {"done": False, "detail": "the service failed; its log says why."}


def test_a_sentence_that_takes_too_long_is_given_up(served):
    detector = RepeatingPredictor(objects=10**6, pause=0.02)
    client = served(detector, seconds=0.3)
    *items, last = lines(ask(client))
    assert 1 <= len(objects(items)) < 40
    assert last == {"done": False, "detail": "the sentence took over 0.3 s."}
    _stands_still(detector)
    assert "boxwright_images_waiting 0.0" in client.get("/metrics").text
    slow = served(RepeatingPredictor(pause=1), seconds=0.2)
    assert "come back later" in reason_of(ask(slow), 503)


def test_others_are_answered_while_a_sentence_is_written_by_the_same_thread(served):
    detector = RepeatingPredictor(objects=10**6, pause=0.01)
    client = served(detector)
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(ask, client) for _ in range(2))
        while not detector.generated:
            time.sleep(0.01)
        before = detector.generated
        for _ in range(5):
            assert client.post("/detect", files={"images": picture()}).status_code == 200
        assert before < detector.generated < 1000
        assert not first.done()
        detector.objects = 0
        assert [lines(one.result())[-1] for one in (first, second)] == [{"done": True}] * 2
    assert len(detector.threads) == 1


def test_who_goes_away_stops_the_writer():
    detector = RepeatingPredictor(objects=10**6, pause=0.01)

    async def come_and_go():
        app, gone, sent = make_app(detector), asyncio.Event(), []
        body = (
            b"--x\r\nContent-Disposition: form-data; name=image; filename=a.png\r\n\r\n" + picture() + b"\r\n--x--\r\n"
        )
        coming = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if coming:
                return coming.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if len(sent) == 4:
                gone.set()

        scope = {
            "type": "http", "method": "POST", "path": "/write", "query_string": b"", "asgi": {"spec_version": "2.3"},
            "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
        }  # fmt: skip
        async with app.router.lifespan_context(app):
            await asyncio.wait_for(app(scope, receive, send), 10)
            await asyncio.to_thread(_stands_still, detector)
        return sent

    sent = asyncio.run(come_and_go())
    assert sent[0]["status"] == 200
    assert len(sent) < 20


def _stands_still(detector: RepeatingPredictor) -> None:
    """Within a second nothing is written any more."""
    end = time.monotonic() + 1
    before = -1
    while before != detector.generated:
        assert time.monotonic() < end
        before = detector.generated
        time.sleep(0.1)
