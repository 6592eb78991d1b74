"""A Ray cluster finds what one process finds, whatever happens to its workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

from helpers.onnx_files import white_boxes

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="workers are found by /proc")]
IMAGES = 200


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = tmp_path / "shots"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 100, (500, 600, 3), dtype=np.uint8)
    for n in range(IMAGES):
        image = Image.fromarray(noise[n : n + 200])
        image.paste("white", (n, 20, n + 60, 90))
        image.save(folder / f"{n:03}.png", compress_level=1)
    (folder / "100 broken.png").write_bytes(b"no image")
    return folder


def start(arguments: list[str], mark: str = "") -> subprocess.Popen[str]:
    environment = os.environ | {"BOXWRIGHT_MARK": mark, "RAY_worker_niceness": "0"}
    command = [sys.executable, "-m", "boxwright", "predict", *arguments, "--overlays", "false", "--batch-size", "4"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """What it printed, and the lines of its errors without those of Ray's own log."""
    out, errors = process.communicate()
    return out, [line for line in errors.splitlines() if "core_worker.cc" not in line]


def workers(mark: str) -> list[int]:
    """Processes of this cluster that detect."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"BOXWRIGHT_MARK={mark}\0".encode() in (process / "environ").read_bytes()
            if ours and b"ray::MapWorker" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_a_killed_worker_changes_nothing(shots, tmp_path):
    model, mark = white_boxes(tmp_path / "model.onnx"), uuid4().hex
    one = start([str(model), str(shots), "--out", str(tmp_path / "one")])
    assert one.wait() == 1
    cluster = start([str(model), str(shots), "--out", str(tmp_path / "ray"), "--engine", "ray"], mark)
    while not list((tmp_path / "ray" / "parts").glob("*.json")) and cluster.poll() is None:
        time.sleep(0.02)
    killed = workers(mark)[:1]
    os.kill(killed[0], signal.SIGKILL)
    out, errors = ended(cluster)
    assert (cluster.returncode, errors) == (1, [])
    assert "100 broken.png" in out
    for name in ("predictions.json", "predictions.csv"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert not workers(mark)


def test_a_mistake_that_a_worker_meets_is_one_line(shots, tmp_path):
    model = white_boxes(tmp_path / "model.onnx")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "parts").write_text("a file where a folder has to be")
    cluster = start([str(model), str(shots), "--out", str(tmp_path / "out"), "--engine", "ray"])
    _, errors = ended(cluster)
    assert cluster.returncode == 2
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {tmp_path / 'out' / 'parts'}")


def test_no_cluster_at_an_address_is_one_line(shots, tmp_path):
    model = white_boxes(tmp_path / "model.onnx")
    cluster = start([str(model), str(shots), "--out", str(tmp_path / "out"), "--engine", "ray", "--address", "auto"])
    _, errors = ended(cluster)
    assert cluster.returncode == 2
    assert len(errors) == 1
    assert errors[0].startswith("error: there is no Ray cluster at auto")
