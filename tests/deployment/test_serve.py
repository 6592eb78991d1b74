"""The verb: how it begins, whom it serves, how it ends."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from boxwright.__main__ import main
from helpers.onnx_files import facts, white_boxes
from helpers.uploads import picture


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.onnx"], "/no.onnx."),
        (["empty.onnx"], "empty.onnx"),
        (["cut.onnx"], "is cut short"),
        (["newer.onnx"], "is of format 2"),
        (["model.onnx", "--port", "70000"], "--port is 0 to 65535"),
        (["model.onnx", "--host", "no such host"], "Choose another --host."),
        (["model.onnx", "--host", "192.0.2.1"], "Choose another --host."),
        (["model.onnx", "--limits.images", "0"], "--limits.images must be over 0"),
        (["model.onnx", "--limits.seconds", "nan"], "--limits.seconds can't be 'nan', it must be a number."),
        (["model.onnx", "--limits.queue", "3"], "--limits.queue must hold the 16 images"),
        (["model.onnx", "--limits.pixel", "3"], "did you mean"),
        (["model.onnx", "--cors", "example.org"], "--cors is an origin such as https://example.org"),
        (["model.onnx", "--cors", "*,http://a.example/path"], "not 'http://a.example/path'"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    whole = white_boxes(Path("model.onnx")).read_bytes()
    Path("empty.onnx").touch()
    Path("cut.onnx").write_bytes(whole[: len(whole) // 2])
    white_boxes(Path("newer.onnx"), facts(boxwright="2"))
    assert main(["serve", *arguments, *([] if "--port" in arguments else ["--port", "0"])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_port_that_is_taken(tmp_path, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", str(white_boxes(tmp_path / "model.onnx")), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"127.0.0.1:{port} can't be listened at" in error
    assert "Choose another --port." in error


def test_a_port_that_another_takes_while_the_model_is_opened(tmp_path, monkeypatch, capsys):
    def taken(*_):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(socket.socket, "listen", taken)
    assert main(["serve", str(white_boxes(tmp_path / "model.onnx")), "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert "127.0.0.1:0 can't be listened at" in error
    assert "Choose another --port." in error


def test_a_key_is_taken_without_what_stands_around_it_and_an_empty_one_is_none(tmp_path, monkeypatch, capsys):
    keys = []
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    monkeypatch.setattr("boxwright.deployment.service.app.make_app", lambda *given: keys.append(given[2]))
    command = ["serve", str(white_boxes(tmp_path / "model.onnx")), "--port", "0"]
    for key in ("secret", " secret\n"):
        monkeypatch.setenv("BOXWRIGHT_API_KEY", key)
        assert main(command) == 0
    assert keys == ["secret"] * 2
    capsys.readouterr()
    for key in ("", " \n"):
        monkeypatch.setenv("BOXWRIGHT_API_KEY", key)
        assert main(command) == 2
        assert capsys.readouterr().err.startswith("error: BOXWRIGHT_API_KEY is set, but empty")


@pytest.mark.slow
def test_it_serves_this_machine_without_torch_and_ends_when_told(tmp_path):
    model = white_boxes(tmp_path / "model.onnx")
    code = (
        "import sys; from boxwright.__main__ import main;"
        f"code = main(['serve', {str(model)!r}, '--port', '0']); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    environment = os.environ | {"BOXWRIGHT_API_KEY": "secret"}
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        address = next(word for word in process.stdout.readline().split() if word.startswith("http://127.0.0.1:"))
        body = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=x", "Authorization": "Bearer secret"}
        request = urllib.request.Request(f"{address}/detect", body + picture() + b"\r\n--x--\r\n", headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert json.load(answer)["annotations"][0]["bbox"] == [10, 20, 30, 30]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
