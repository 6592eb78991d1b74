"""What is computed on a GPU is what is computed on the CPU, up to rounding; runs there resume exactly."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import boxwright
from boxwright.data.cache import build
from boxwright.data.loader import eval_batches
from boxwright.deployment.onnx.onnx_file import save, to_onnx
from boxwright.runtime import Detector as Exported
from boxwright.training.run_logger import RunLogger
from boxwright.types import Batch, Detector
from helpers.frozen import FILES, unpack
from helpers.training_runs import SETTINGS, rows, squares_and_discs
from helpers.untrained import untrained

DETECTORS = ["dense", "detr", "deformable", "pix2seq", "patchseq"]
CUDA = SETTINGS | {"device": "cuda", "epochs": 2}


@pytest.fixture
def data(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return squares_and_discs(tmp_path / "data")


def losses(detector: Detector, batch: Batch) -> torch.Tensor:
    torch.manual_seed(0)
    outputs = detector(batch.images_BCHW, batch.sizes_B2, batch)
    return torch.stack(list(detector.loss(outputs, batch).values()))


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_predicts_on_the_gpu_what_it_does_on_the_cpu(name, batch, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    detector, scores = untrained(name), []
    for device in ("cpu", "cuda"):
        here = batch.to(device)
        with torch.inference_mode():
            scores.append(detector.to(device).decode(detector(here.images_BCHW, here.sizes_B2)).scores_BD.cpu())
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-2, atol=1e-4)  # of equal ones, either may come first


@pytest.mark.parametrize("name", DETECTORS)
def test_a_step_in_bf16_has_about_the_loss_of_fp32_and_moves_the_weights(name, batch):
    detector, batch = untrained(name).cuda().eval(), batch.to("cuda")
    with torch.no_grad():
        full = losses(detector, batch)
    with torch.autocast("cuda", torch.bfloat16):
        half = losses(detector, batch)
    assert half.isfinite().all()
    difference = (half.detach().sum() - full.sum()).abs()
    assert difference < 0.1 * full.sum()  # the random draws are the same
    half.sum().backward()
    before = {key: value.detach().clone() for key, value in detector.named_parameters()}
    torch.optim.AdamW(detector.parameters(), 1e-3, fused=True).step()
    assert any(not torch.equal(before[key], value) for key, value in detector.named_parameters())
    assert all(value.isfinite().all() for value in detector.parameters())


def test_batches_arrive_from_pinned_memory_as_they_are_in_the_cache(data):
    records = boxwright.read(data).splits["train"]
    cache = build(records, 64, mode="pixels", quiet=True)
    assert cache.batch([0, 1], pin=True).images_BCHW.is_pinned()
    for here, there in zip(eval_batches(cache, 4), eval_batches(cache, 4, device="cuda"), strict=True):
        assert there.images_BCHW.is_cuda
        for name, value in vars(here).items():
            assert torch.equal(value, getattr(there, name).cpu()), name


def test_a_run_that_was_interrupted_goes_on_exactly(data, tmp_path, monkeypatch):
    whole = boxwright.train(data, out=tmp_path / "whole", **CUDA)
    log = RunLogger.step

    def stop(self, number, *given):
        log(self, number, *given)
        if number == 6:
            raise RuntimeError("killed")

    monkeypatch.setattr(RunLogger, "step", stop)
    with pytest.raises(RuntimeError, match="killed"):
        boxwright.train(data, out=tmp_path / "killed", **CUDA)
    monkeypatch.setattr(RunLogger, "step", log)
    killed = boxwright.train(data, out=tmp_path / "killed", resume=True, **CUDA)
    for one, other in zip(rows(whole), rows(killed), strict=True):
        assert {k: v for k, v in one.items() if "loss" in k} == pytest.approx(
            {k: v for k, v in other.items() if "loss" in k}
        )


def test_a_checkpoint_predicts_the_same_on_both_devices(tmp_path):
    file, image = unpack("dense.safetensors", tmp_path), FILES / "data" / "images" / "1.png"
    cpu, gpu = (boxwright.load(file, device=device).predict(image, threshold=0.0) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu.scores_N[:6], cpu.scores_N[:6], atol=2e-3)


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is not installed"
)
def test_an_exported_file_predicts_the_same_on_both_devices(tmp_path):
    save(to_onnx(untrained("dense")), tmp_path / "dense.onnx")
    image = FILES / "data" / "images" / "1.png"
    cpu, gpu = (Exported(tmp_path / "dense.onnx", device).predict(image, threshold=0.0) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu.scores_N[:6], cpu.scores_N[:6], atol=1e-3)
