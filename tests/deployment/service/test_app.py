"""The routes: what they answer, what they refuse, and that they live on."""

import asyncio
import base64
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from boxwright.deployment.service.app import make_app
from boxwright.deployment.service.limits import Limits
from boxwright.runtime import Detector
from boxwright.thresholds import Thresholds
from helpers.onnx_files import facts, white_boxes
from helpers.slow import Slow
from helpers.uploads import picture


def files(*pictures: bytes):
    return [("images", (f"{i}.png", data, "image/png")) for i, data in enumerate(pictures)]


def reason_of(answer, status: int) -> str:
    """The reason of a refusal."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]
    return answer.json()["detail"]


def test_an_upload_is_answered_as_a_coco_data_set(client):
    answer = client.post("/detect", files=files(picture(), picture((50, 70), (5, 6, 25, 66))))
    assert answer.status_code == 200
    assert answer.json() == {
        "images": [
            {"id": 1, "file_name": "0.png", "width": 96, "height": 64},
            {"id": 2, "file_name": "1.png", "width": 50, "height": 70},
        ],
        "annotations": [
            {
                "id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 30], "area": 900, "score": 0.9,
                "iscrowd": 0,
            },
            {
                "id": 2, "image_id": 2, "category_id": 1, "bbox": [5, 6, 20, 60], "area": 1200, "score": 0.9,
                "iscrowd": 0,
            },
        ],
        "categories": [{"id": 1, "name": "box"}, {"id": 2, "name": "other"}],
    }  # fmt: skip


def test_the_stored_thresholds_count_unless_a_request_names_one(served, tmp_path):
    card = json.dumps(Thresholds(0.3, {"other": 0.2, "box": 0.95}, "x").to_card())
    client = served(Detector(white_boxes(tmp_path / "w.onnx", facts(card=card)), "cpu"))
    model = client.get("/model").json()
    assert (model["threshold"], model["thresholds"]) == (0.3, [0.95, 0.2])

    def labels(**form):
        answer = client.post("/detect", files=files(picture()), data=form)
        return [row["category_id"] for row in answer.json()["annotations"]]

    assert labels() == [2]
    assert labels(threshold=0.5) == [1]
    assert labels(threshold=0) == [1, 2]
    image = base64.b64encode(picture()).decode()
    for more, expected in (({}, [2]), ({"threshold": 0.5}, [1]), ({"threshold": None}, [2])):
        answer = client.post("/detect/base64", json={"images": [image]} | more).json()
        assert [row["category_id"] for row in answer["annotations"]] == expected


def test_thresholds_and_classes(client):
    def found(**form):
        answer = client.post("/detect", files=files(picture()), data=form)
        return [(row["category_id"], row["score"]) for row in answer.json()["annotations"]]

    assert found(threshold=0) == [(1, 0.9), (2, 0.25)]
    assert found(threshold=0.95) == []
    assert found(threshold=0, classes=["other"]) == [(2, 0.25)]
    assert found(threshold=0, classes=["other", "box"]) == [(1, 0.9), (2, 0.25)]


def test_base64_says_the_same(client):
    request = {"images": [base64.b64encode(picture()).decode()], "threshold": 0.1, "classes": ["other"]}
    answer = client.post("/detect/base64", json=request)
    [row] = answer.json()["annotations"]
    assert (row["category_id"], row["bbox"]) == (2, [10, 20, 30, 30])
    assert answer.json()["images"][0]["file_name"] == "image 1"


def test_boxes_refer_to_the_image_as_displayed_at_its_full_size(served):
    turned = picture((64, 96), (10, 20, 40, 50), "jpeg", quality=95, exif=_orientation(6))
    big = picture((960, 400), (100, 200, 400, 300))
    answer = served(bytes=10**7).post("/detect", files=files(turned, big)).json()
    sizes = [(image["width"], image["height"]) for image in answer["images"]]
    assert sizes == [(96, 64), (960, 400)]
    assert np.allclose(answer["annotations"][0]["bbox"], [46, 10, 30, 30], atol=2)
    assert np.allclose(answer["annotations"][1]["bbox"], [100, 200, 300, 100], atol=5)


def _orientation(value: int):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("bad", [b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n", picture()[:60], b"<svg/>"])
def test_what_is_no_image_is_named_and_the_service_lives_on(client, bad):
    reason = reason_of(client.post("/detect", files=files(picture(), bad)), 400)
    assert reason.startswith("1.png cannot be read as an image: ")
    assert client.post("/detect", files=files(picture())).status_code == 200


def test_limits(client):
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert "limit of 3" in reason_of(client.post("/detect", files=files(*[picture()] * 4)), 413)
    assert "1000 x 500 pixels" in reason_of(client.post("/detect", files=files(picture((1000, 500)))), 413)
    assert "100,000 bytes" in reason_of(client.post("/detect", files=files(bytes(200_000))), 413)
    assert "100,000 bytes" in reason_of(
        client.post("/detect", content=(bytes(60_000) for _ in range(2)), headers=form), 413
    )
    assert client.get("/metrics").text.count('boxwright_requests_total{path="/detect",status="413"} 4.0') == 1


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"threshold": "1"}, "threshold: Input should be less than 1"),
        ({"threshold": "nan"}, "threshold"),
        ({"threshold": "half"}, "threshold"),
        ({"classes": "boxx"}, "did you mean 'box'?"),
        ({"classes": "\N{SNOWMAN}"}, "doesn't know the class"),
        (
            {"thresh": "0.9"},
            "there is no field 'thresh' (did you mean 'threshold'?); there are images, threshold, classes.",
        ),
        ({"threshold": ["0.4", "0.9"]}, "threshold: send it once, not 2 times."),
        ({"images": "hello"}, "images: send files, not text (with curl, images=@photo.jpg)"),
    ],
)
def test_arguments_that_cannot_be(client, form, reason):
    assert reason in reason_of(client.post("/detect", files=files(picture()), data=form), 422)


def test_nothing_is_read_behind_the_address(client):
    for path in ("/detect", "/write"):
        answer = client.post(f"{path}?threshold=0.9&classes=x", files=files(picture()))
        assert reason_of(answer, 422).startswith("threshold, classes: send it in the body")
    answer = client.post("/detect/base64?threshold=0.9", json={"images": ["AAAA"]})
    assert reason_of(answer, 422).startswith("threshold: send it in the body")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ('{"images": []}', 422, "images"),
        ('{"images": ["####"]}', 400, "image 1 is not base64"),
        ('{"images": [""]}', 400, "image 1 cannot be read as an image: it is empty"),
        ('{"images": ["AAAA"], "threshold": NaN}', 422, "threshold"),
        ('{"images": ["AAAA"], "limit": 0.5}', 422, "limit"),
        ('{"images": ["file:///etc/passwd"]}', 400, "image 1 is not base64"),
        ('{"images": ["AAAA"], "classes": ["\\ud800"]}', 422, "classes"),
        ("[" * 50_000, 400, "body"),
        (
            "{images: []}",
            400,
            "the body is not JSON: Expecting property name enclosed in double quotes, at character 2.",
        ),
        (b"\xff{}", 400, "body"),
        ("", 422, "body"),
        ("[]", 422, "body: send a JSON object with the header Content-Type: application/json"),
    ],
)
def test_text_that_cannot_be(client, body, status, reason):
    answer = client.post("/detect/base64", content=body, headers={"content-type": "application/json"})
    assert reason in reason_of(answer, status)


def test_a_key_is_demanded_where_there_is_one(served):
    client = served(key="secret")
    request = {"files": files(picture())}
    assert "key" in reason_of(client.post("/detect", **request), 401)
    assert client.post("/detect", **request, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.post("/detect", **request, headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/metrics").status_code == client.get("/model").status_code == 401
    assert client.get("/healthz").status_code == client.get("/").status_code == 200


def test_the_page_fetches_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for path in ("/", "/page.js", "/write.js", "/page.css"):
        text = client.get(path).text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_head_is_get_without_the_body(client):
    for path in ("/", "/healthz", "/model"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == client.get(path).headers["content-length"]
    assert client.head("/detect").status_code == client.get("/detect").status_code == 405
    assert reason_of(client.get("/nowhere"), 404) == "Not Found"
    assert reason_of(client.post("/detect/"), 404) == reason_of(client.get("/model/"), 404) == "Not Found"


def test_openapi_describes_the_routes(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/detect", "/detect/base64", "/write", "/model", "/healthz", "/metrics"}
    assert set(paths["/detect"]["post"]["responses"]) == {"200", "400", "401", "408", "413", "422", "500", "503"}


def test_openapi_is_what_callers_have_generated_clients_from(served):
    """Only on purpose does the description change: names of fields and models, texts, statuses."""
    described = served(key="secret").get("/openapi.json", headers={"Authorization": "Bearer secret"}).json()
    del described["info"]["version"]
    assert described == json.loads(Path(__file__).with_name("openapi.json").read_text())


def test_requests_are_computed_together_and_who_finds_no_room_is_told_when_to_come_back(served):
    slow = Slow()
    client = served(slow, queue=6)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, "/detect", files=files(picture()))
        assert slow.begun.wait(10)
        others = [pool.submit(client.post, "/detect", files=files(picture())) for _ in range(5)]
        while "boxwright_images_waiting 6.0" not in client.get("/metrics").text:
            pass
        refused = client.post("/detect", files=files(picture()))
        assert "come back" in reason_of(refused, 503)
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200
        slow.go.set()
        assert {one.result().status_code for one in [first, *others]} == {200}
    assert slow.batches[0] == 1
    assert sum(slow.batches) == 6
    assert len(slow.batches) <= 3
    assert "boxwright_images_waiting 0.0" in client.get("/metrics").text


PART = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + picture() + b"\r\n"
TWO = PART + PART + b"--x--\r\n"


async def send_body(app, body: bytes, whole: bool = True, statuses: list[int] | None = None) -> int:
    """The status of a request whose body is this, or of which nothing more comes."""
    coming = [{"type": "http.request", "body": body, "more_body": not whole}]
    statuses = [] if statuses is None else statuses

    async def receive():
        await asyncio.sleep(0.01)
        return coming.pop() if coming else await asyncio.Event().wait()

    async def send(message):
        statuses.extend([message["status"]] if "status" in message else [])

    scope = {
        "type": "http", "method": "POST", "path": "/detect", "query_string": b"", "asgi": {"spec_version": "2.3"},
        "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
    }  # fmt: skip
    await app(scope, receive, send)
    return statuses[0]


def test_bodies_on_their_way_take_no_places_but_are_limited_together(predictor):
    async def come():
        app = make_app(predictor, Limits(bytes=len(TWO), images=2, queue=2, seconds=5))
        async with app.router.lifespan_context(app), asyncio.TaskGroup() as tasks:
            slow = [tasks.create_task(send_body(app, b"-", whole=False)) for _ in range(8)]
            await asyncio.sleep(0.1)
            assert await send_body(app, TWO) == 200
            dropped: list[int] = []
            slow += [tasks.create_task(send_body(app, TWO[:-1], False, dropped)) for _ in range(2)]
            await asyncio.sleep(0.1)
            assert await send_body(app, TWO) == 200  # once the largest that came slowly has made room
            assert dropped == [503]
            for one in slow:
                one.cancel()
            await asyncio.wait(slow)
            assert await send_body(app, TWO) == 200

    asyncio.run(come())


def test_who_waits_when_the_service_waits_for_nobody_any_longer_is_told_so():
    async def end() -> list[int]:
        slow, statuses = Slow(), []
        app = make_app(slow, Limits(seconds=30))
        async with app.router.lifespan_context(app):
            waiting = asyncio.create_task(send_body(app, TWO, True, statuses))
            await asyncio.to_thread(slow.begun.wait, 30)
            waiting.cancel()
            await asyncio.wait([waiting])
            slow.go.set()
        return statuses

    assert asyncio.run(end()) == [503]


@pytest.mark.parametrize("end", [PART + PART, TWO[:-5], TWO[:-4], TWO[:-50], b"", b"--x\r\n"])
def test_a_form_that_is_cut_short_is_refused(client, end):
    headers = {"content-type": 'multipart/form-data; boundary="x"'}
    assert "closing boundary" in reason_of(client.post("/detect", content=end, headers=headers), 400)
    bits = (TWO[i : i + 7] for i in range(0, len(TWO), 7))
    for whole in (TWO, TWO[:-2], TWO + b"\r\n", bits):
        assert len(client.post("/detect", content=whole, headers=headers).json()["images"]) == 2


def test_uploads_are_not_stored(served, monkeypatch):
    client = served(bytes=10**7)
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda file: pytest.fail("a file is written"))
    large = picture((700, 500), kind="bmp")
    assert len(large) > 10**6
    assert client.post("/detect", files=files(large, large)).status_code == 200


def test_several_images_of_one_request_need_room_for_each(served):
    slow = Slow()
    client = served(slow, queue=3)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/detect", files=files(picture()))
        assert slow.begun.wait(10)
        assert client.post("/detect", files=files(*[picture()] * 3)).status_code == 503
        slow.go.set()
        assert first.result().status_code == 200
    assert client.post("/detect", files=files(*[picture()] * 3)).status_code == 200


def test_what_takes_too_long_is_given_up(served):
    slow = Slow()
    client = served(slow, seconds=0.2)
    assert client.post("/detect", files=files(picture())).status_code == 503
    slow.go.set()
    assert client.post("/detect", files=files(picture())).status_code == 200


def test_an_image_that_breaks_the_detector_breaks_no_other(served):
    slow = Slow()
    client = served(slow)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, "/detect", files=files(picture()))
        assert slow.begun.wait(10)
        bad = pool.submit(client.post, "/detect", files=files(picture((13, 13))))
        good = pool.submit(client.post, "/detect", files=files(picture()))
        while "boxwright_images_waiting 3.0" not in client.get("/metrics").text:
            pass
        slow.go.set()
        assert (first.result().status_code, good.result().status_code) == (200, 200)
        assert reason_of(bad.result(), 500) == "the service failed; its log says why."


def test_metrics_count(client):
    client.post("/detect", files=files(picture()))
    client.get("/nowhere/at/all")
    text = client.get("/metrics").text
    assert 'boxwright_requests_total{path="/detect",status="200"} 1.0' in text
    assert 'boxwright_requests_total{path="other",status="404"} 1.0' in text
    assert "boxwright_batch_images_count 1.0" in text


def test_answers_are_json_as_it_is_written(client):
    answer = client.post("/detect", files=[("images", ("grö\u00dfe.png", picture(), "image/png"))])
    assert json.loads(answer.content)["images"][0]["file_name"] == "größe.png"
