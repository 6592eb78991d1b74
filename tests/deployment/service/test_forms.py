"""Forms that are none, or nearly: bug reports of form parsers say what comes."""

import pytest

from helpers.uploads import picture

DISPOSITION = b'Content-Disposition: form-data; name="images"; filename="a.png"'
KIND = b"multipart/form-data; boundary=x"


def body(head: bytes = DISPOSITION, file: bytes | None = None, end: bytes = b"\r\n--x--\r\n") -> bytes:
    return b"--x\r\n" + head + b"\r\n\r\n" + (picture() if file is None else file) + end


BAD = {
    "no boundary": (b"multipart/form-data", body()),
    "an empty boundary": (b"multipart/form-data; boundary=", body()),
    "another boundary": (b"multipart/form-data; boundary=y", body()),
    "a boundary that is no ASCII": (b"multipart/form-data; boundary=\xff", body()),
    "a boundary of 50,000 characters": (b"multipart/form-data; boundary=" + b"x" * 50_000, body()),
    "a charset of two bytes": (KIND + b"; charset=utf-16", body()),
    "no name": (KIND, body(b'Content-Disposition: form-data; filename="a.png"')),
    "no disposition": (KIND, body(b"Content-Type: image/png")),
    "no headers": (KIND, b"--x\r\n\r\nabc\r\n--x--\r\n"),
    "a colon missing": (KIND, body(b"Content-Disposition form-data")),
    "a name by RFC 5987": (KIND, body(b"Content-Disposition: form-data; name*=utf-8''images; filename=a")),
    "a name in parts": (KIND, body(b'Content-Disposition: form-data; name*0="im"; name*1="ages"; filename=a')),
    "two dispositions": (
        KIND,
        body(b'Content-Disposition: form-data; name="a"\r\n' + DISPOSITION.replace(b"images", b"b")),
    ),
    "3,000 headers of a part": (KIND, body(b"a: b\r\n" * 3000 + DISPOSITION)),
    "a long header of a part": (KIND, body(DISPOSITION + b"; a=" + b"a" * 50_000)),
    "dashes after the end": (KIND, body(end=b"\r\n--x--" + b"-" * 50_000)),
    "text before the beginning": (KIND, b"a" * 50_000 + b"\r\n" + body(b"no header")),
    "half an end": (KIND, body(end=b"\r\n--x-" * 9000)),
    "line ends of Unix": (KIND, body().replace(b"\r\n", b"\n")),
    "1,001 files": (KIND, b"".join(b"--x\r\n" + DISPOSITION + b"\r\n\r\n\r\n" for _ in range(1001)) + b"--x--\r\n"),
    "a form in a form": (KIND, body(DISPOSITION + b"\r\nContent-Type: multipart/mixed; boundary=y", b"--y--")),
    "a file of another encoding": (KIND, body(DISPOSITION + b"\r\nContent-Transfer-Encoding: base64", b"AAAA")),
    "a body packed by gzip": (KIND, b"\x1f\x8b\x08" + bytes(99)),
    "a form of addresses": (b"application/x-www-form-urlencoded", b"images=a&images=b;c=%ff%zz&" + b"a=b&" * 5000),
    "JSON": (b"application/json", b'{"images": []}'),
    "no type": (b"", body()),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_form_is_refused_in_words(client, name):
    kind, sent = BAD[name]
    answer = client.post("/detect", content=sent, headers={b"content-type": kind})
    assert answer.status_code in (400, 413, 422)
    assert answer.json()["detail"]


GOOD = {
    "a quoted boundary": (b'multipart/form-data; boundary="x"', body()),
    "an unknown charset": (KIND + b"; charset=klingon", body()),
    "a charset that is no text": (KIND + b"; charset=hex", body()),
    "a file name of latin letters": (KIND, body(DISPOSITION.replace(b"a.png", b"\xe4.png"))),
    "a file name with quotes": (KIND, body(DISPOSITION.replace(b"a.png", b'\\"a%22.png'))),
    "a path": (KIND, body(DISPOSITION.replace(b"a.png", b"../../etc/passwd"))),
    "headers of other kinds": (KIND, body(DISPOSITION + b"\r\nContent-Type: text/html\r\nX-Accel-Redirect: /etc")),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_unusual_is_read(client, name):
    kind, sent = GOOD[name]
    answer = client.post("/detect", content=sent, headers={b"content-type": kind})
    assert answer.status_code == 200, answer.text
    assert answer.json()["annotations"][0]["bbox"] == [10, 20, 30, 30]
