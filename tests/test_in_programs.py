"""The library inside another program: forked workers, pickles, other defaults of torch, its own logging."""

import copy
import logging
import multiprocessing
import pickle
import warnings
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch

import boxwright
import boxwright.runtime
from boxwright.bundled.catalogue import list_models
from boxwright.classes import split_classes
from boxwright.command_line import call
from boxwright.config import Optim, UserError
from boxwright.console import make_console
from boxwright.device import choose_device
from boxwright.models.dense import warn_of_many
from helpers.frozen import unpack
from helpers.training_runs import SETTINGS, rows, squares_and_discs, train

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares_and_discs(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, no_charts: None) -> None:
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def in_forked_process(work) -> object:
    """The result of a function in a forked process, which must end within a minute."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        process = context.Process(target=lambda: sender.send(work()))
        process.start()
    try:
        assert receiver.poll(120), "the forked process hangs"
        return receiver.recv()
    finally:
        process.kill()
        process.join()


def test_a_forked_process_predicts_with_a_checkpoint(tmp_path):
    torch.set_num_threads(2)
    try:
        predictor = boxwright.load(unpack("dense.safetensors", tmp_path), device="cpu")
        here = predictor.predict(IMAGE, threshold=0.0)
        there = in_forked_process(lambda: predictor.predict(IMAGE, threshold=0.0))
    finally:
        torch.set_num_threads(1)
    np.testing.assert_allclose(here.scores_N, there.scores_N, rtol=1e-4)


def test_an_exported_detector_predicts_in_a_forked_process_and_from_a_pickle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    detector = boxwright.runtime.Detector(unpack("dense.onnx", tmp_path).name, threads=2)
    here = detector.predict(IMAGE, threshold=0.0)
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(detector))
    assert again.names == detector.names
    for there in (
        again.predict(IMAGE, threshold=0.0),
        in_forked_process(lambda: detector.predict(IMAGE, threshold=0.0)),
    ):
        np.testing.assert_allclose(here.scores_N, there.scores_N, rtol=1e-4)


def test_a_detector_goes_to_other_processes_by_value(tmp_path):
    detector = boxwright.load(unpack("dense.safetensors", tmp_path), "cpu")
    here = detector.predict(IMAGE, threshold=0.0)
    content = bytes(ForkingPickler.dumps(detector))  # as multiprocessing passes arguments
    assert len(content) > 4 * sum(parameter.numel() for parameter in detector.detector.parameters())
    for again in (pickle.loads(content), copy.deepcopy(detector)):
        np.testing.assert_array_equal(again.predict(IMAGE, threshold=0.0).boxes_N4, here.boxes_N4)


def test_training_does_not_depend_on_the_defaults_of_the_program(data, tmp_path):
    expected = rows(train(data, tmp_path / "usual", epochs=1))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode():
            run = train(data, tmp_path / "odd", epochs=1)
            assert torch.get_default_dtype() == torch.float64
            assert torch.zeros(1).device.type == "meta"
            report = boxwright.evaluate(run, data, device="cpu")
        with torch.set_grad_enabled(False):
            train(data, tmp_path / "none", epochs=1)
            assert not torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
    assert rows(tmp_path / "odd") == rows(tmp_path / "none") == expected
    assert report.ap == pytest.approx(float(expected[-1]["val_ap"]))


def test_predict_is_in_evaluation_mode_and_leaves_the_mode_as_it_was(tmp_path):
    predictor = boxwright.load(unpack("detr.safetensors", tmp_path), device=torch.device("cpu"))
    expected = predictor.predict(IMAGE, threshold=0.0)
    predictor.detector.train()
    assert predictor.predict(IMAGE, threshold=0.0).scores_N.tolist() == expected.scores_N.tolist()
    assert predictor.detector.training


def test_devices_of_torch_are_taken():
    assert choose_device(torch.device("cpu"))[0] == "cpu"
    assert choose_device(torch.device("cpu", 0))[0] == "cpu"
    for wrong in (torch.device("cuda", 7), 3, None, ["cpu"]):
        with pytest.raises(UserError, match="--device is auto, cpu, cuda or mps, not"):
            choose_device(wrong)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"epochs": "1"}, "--epochs must be a whole number or None, not '1'"), ({"epochs": 1.5}, "--epochs must be a"),
     ({"batch_size": True}, "--batch-size must be"), ({"val": "0.2"}, "--val must be a number, not '0.2'"),
     ({"seed": None}, "--seed must be a whole number, not None"), ({"pretrained": "no"}, "--pretrained must be"),
     ({"image_size": [64]}, "--image-size must be"), ({"optim": {"lr": "1"}}, "--optim.lr must be a number"),
     ({"optim": {"rl": 1e-4}}, "optim has no 'rl'"), ({"optim": 3}, "optim is Optim"), ({"augment": []}, "augment is"),
     ({"augment": {"flip": "x"}}, "--augment.flip must be a number"), ({"size": 3}, "--size must be nano, "),
     ({"model": Path("x")}, "--model must be dense, .* or None, not PosixPath"),
     ({"backbone": 3}, "--backbone must be a text"), ({"weights": 3}, "--weights must be a path")],
)  # fmt: skip
def test_values_of_another_type_are_one_error(data, tmp_path, settings, named):
    with pytest.raises(UserError, match=named):
        train(data, tmp_path / "run", **settings)


def test_settings_may_be_dictionaries(data, tmp_path):
    plain = train(data, tmp_path / "a", epochs=1, optim=Optim(lr=1e-4))
    assert rows(train(data, tmp_path / "b", epochs=1, optim={"lr": 1e-4})) == rows(plain)


def test_a_predictor_is_no_path(data, tmp_path):
    predictor = boxwright.load(unpack("dense.safetensors", tmp_path), device="cpu")
    with pytest.raises(UserError, match="weights are a path, not a Predictor; give the file, or the folder of the run"):
        boxwright.evaluate(predictor, data)
    with pytest.raises(UserError, match="data are a path, not"):
        boxwright.read(predictor)


def take_classes(arguments: list[str], names: tuple[str, ...]) -> object:
    """Classes that a verb takes from a command line."""

    def verb(classes: "list[str] | str | None" = None, rest: int = 1) -> object:
        """Do.

        Args:
            classes: names.
            rest: a number.
        """
        assert rest == 2
        return split_classes(classes, names)

    return call(verb, "verb", arguments)


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [("[no, on]", ("no", "on"), ["no", "on"]), ("no,on", ("no", "on"), ["no", "on"]), ("no", ("no",), "no"),
     ("null", ("null", "a"), ["null"]), ("null", ("a",), None), ("[null, 1, 1e3]", (), ["null", "1", "1e3"]),
     ("[a, b", (), ["[a", "b"]), ("007", ("007",), "007"), ("a: b", (), ["a: b"])],
)  # fmt: skip
@pytest.mark.parametrize("equals", [True, False])
def test_classes_of_a_command_line_are_names_whatever_yaml_reads(text, names, expected, equals):
    given = [f"--classes={text}"] if equals else ["--classes", text]
    assert take_classes([*given, "--rest", "2"], names) == expected


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [("[no, on]", (), ["no", "on"]), ("\n- no\n- 007\n- 2020-01-01", (), ["no", "007", "2020-01-01"]),
     ("no", ("no",), "no"), ("1e3", ("1e3",), "1e3"), ("null", ("null", "a"), ["null"]), ("null", ("a",), None),
     ('"null"', ("null",), ["null"]), ("[null, a]", (), ["null", "a"]), ("~", ("null",), None), ("", (), None),
     ("&x [on, 'é\U0001f600']", (), ["on", "é\U0001f600"])],
)  # fmt: skip
def test_classes_of_a_file_of_settings_are_names_whatever_yaml_reads(text, names, expected, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(f"rest: 2\nclasses: {text}\n", encoding="utf-8")
    assert take_classes(["--config", str(file)], names) == expected
    assert take_classes(["--config", str(file), "--classes", "cat"], ()) == ["cat"]


@pytest.mark.parametrize("text", ["[[a]]", "{a: b}", "[a"])
def test_classes_of_a_file_that_are_no_names_are_one_error(text, tmp_path):
    (tmp_path / "settings.yaml").write_text(f"rest: 2\nclasses: {text}\n")
    with pytest.raises(UserError) as error:
        take_classes(["--config", str(tmp_path / "settings.yaml")], ())
    assert "\n" not in str(error.value)


def test_a_program_may_silence_or_redirect_all_messages(data, tmp_path, capsys, caplog):
    logger = logging.getLogger("boxwright")
    logger.setLevel(logging.INFO)
    try:
        with caplog.at_level(logging.INFO, logger="boxwright"):
            boxwright.train(data, out=tmp_path / "run", **SETTINGS, epochs=1)
            make_console(stderr=True).print("[x]")
            logged = len(caplog.records)
            logger.setLevel(logging.CRITICAL)
            make_console().print("silent")
    finally:
        logger.setLevel(logging.NOTSET)
    assert "16 images to train on" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING
    assert len(caplog.records) == logged
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    make_console().print("heard")
    assert capsys.readouterr().out == "heard\n"
    assert list_models()


def test_dense_says_what_it_drops():
    warn_of_many(torch.ones(2, 100, dtype=torch.bool), 150)
    warn_of_many(torch.zeros(2, 400, dtype=torch.bool), 150)
    with pytest.warns(UserWarning, match="more objects than the 100 that a dense finds in one: it misses the others"):
        warn_of_many(torch.ones(1, 120, dtype=torch.bool), 150)
    with (
        pytest.warns(UserWarning, match="more objects than the 150 candidates of a dense: only as many as fit"),
        pytest.warns(UserWarning, match="it misses the others"),
    ):
        warn_of_many(torch.ones(1, 400, dtype=torch.bool), 150)
