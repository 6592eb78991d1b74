import errno
import inspect
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import boxwright
from boxwright.__main__ import VERBS, main
from boxwright.files import write_whole

ROOT = Path(__file__).parent.parent


def test_help_imports_only_python_and_this_package():
    """So it answers at once."""
    code = (
        "import sys; before = set(sys.modules); from boxwright.__main__ import main; main(['--help']); "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "assert new - sys.stdlib_module_names == {'boxwright'}, new"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {verb} " in done.stdout for verb in VERBS)


def test_every_verb_that_computes_is_a_function():
    elsewhere = {"models", "export", "serve", "push", "doctor", "cache"}  # see the package's docstring
    assert {verb.replace("-", "_") for verb in set(VERBS) - elsewhere} <= set(boxwright.__all__)


def test_every_public_name_is_there():
    for name in boxwright.__all__:
        assert getattr(boxwright, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = boxwright.trian


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "did you mean 'train'?"),
        (["check"], "data"),
        (["check", "DATA", "--jsn"], "did you mean 'json'?"),
        (["train", "DATA", "--epoch", "3"], "did you mean 'epochs'?"),
        (["train", "DATA", "--optim.lrr", "1"], "--optim.lrr 1. (did you mean 'optim.lr'?) See"),
        (["train", "DATA", "--nothing-like-it"], "--nothing-like-it. See"),
        (["check", "DATA", "more"], "more. See"),
        (["check", "--data", "DATA"], "DATA goes by its place, without a name: boxwright check DATA. See"),
        (
            ["distill", "--teacher", "W", "DATA"],
            "TEACHER goes by its place, without a name: boxwright distill TEACHER DATA.",
        ),
        (["distill", "W", "DATA", "--size", "tiny"], "resnet50-c4, vit-b, vit-l. See"),
        (["train", "DATA", "--model", "dens"], "--model can't be 'dens' (did you mean 'dense'?), it must be one of"),
        (["train", "DATA", "--model", ""], "--model can't be '', it must be one of: dense, pix2seq,"),
        (["convert", "DATA", "OUT", "--to", "coc"], "can't be 'coc' (did you mean 'coco'?), it must be one of: coco,"),
        (["predict", "W", "S", "--threshold", "half"], "--threshold can't be 'half', it must be one of: float, null."),
        (["train", "DATA", "--seed", "1.5"], "--seed can't be '1.5', it must be a whole number. See"),
        (["train", "DATA", "--epochs", "many"], "--epochs can't be 'many', it must be one of: int, null. See"),
        (
            ["explain", "W", "IMAGE", "--pixel", "[1, x]"],
            "--pixel can't be '[1, x]', it must be one of: tuple[int, int], null. See",
        ),
        (["train", "DATA", "--augment.scale", "[1, 2, 3]"], "'[1, 2, 3]', it must be one of: tuple[float, float]"),
        (["train", "DATA", "--optim", "{lr: x}"], "--optim.lr can't be 'x', it must be one of: float, null. See"),
        (["train", "DATA", "--epochs"], "--epochs: expected one argument. See"),
        (["train", "DATA", "--epochs", "0"], "--epochs must be at least 1"),
        (["train", "no-such-folder"], "no-such-folder does not exist"),
        (["train", "DATA", "--config", "no.yaml"], "no.yaml"),
        (["train", "DATA", "--config", "epochs: many"], "--epochs can't be 'many', it must be one of: int, null. See"),
    ],
)
def test_a_mistake_is_one_line_that_helps(arguments, expected, capsys):
    assert expected in _error(arguments, capsys)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("epoch: 3", "'epoch' is not accepted. (did you mean 'epochs'?) See"),
        ("optim:\n  lrr: 1", "'optim' does not accept option 'lrr'. (did you mean 'lr'?) See"),
        ("optim:\n  learning_rat: 1", "'optim' does not accept option 'learning_rat'. See"),
        ("model: dens", "--model can't be 'dens' (did you mean 'dense'?), it must be one of: dense, pix2seq,"),
        ("epochs: many", "--epochs can't be 'many', it must be one of: int, null. See"),
        ("augment:\n  scale: [1, x]", "--augment.scale can't be \"[1, 'x']\", it must be one of: tuple[float, float]"),
        ("seed: null", "--seed can't be 'null', it must be a whole number. See"),
        ("optim: 3", "--optim can't be '3', it must be settings by name: lr, backbone_factor,"),
        ("optim: null", "--optim can't be 'null', it must be settings by name: lr, backbone_factor,"),
        ("epochs: [3", "line 1"),
        ("only text", "only text"),
        ("", "config"),
        (b"\xff\xfe", "run.yaml is not text in UTF-8. See"),
    ],
)
def test_a_mistake_in_a_yaml_file_is_one_line_that_helps(content, expected, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert expected in _error(["train", "DATA", "--config", str(path)], capsys)


def _error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line writes on stderr, which is one line."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_the_command_line_counts_more_than_a_yaml_file_wherever_it_stands(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("teacher: old\ndata: DATA\nepochs: 3\n")
    config = ["--config", str(tmp_path / "run.yaml")]
    for arguments in (["new", *config], [*config, "new"], ["new", f"--config={config[1]}"]):
        assert main(["distill", *arguments]) == 2
        assert "no weights at new;" in capsys.readouterr().err


def test_where_torch_is_missing_a_verb_names_it_first(monkeypatch, capsys):
    def miss(*_):
        raise ModuleNotFoundError(name="matplotlib.axes")

    monkeypatch.setattr("boxwright.__main__._run", miss)
    assert main(["export"]) == 2
    assert "needs matplotlib, which" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["export"]) == 2
    assert "needs torch, which" in capsys.readouterr().err


def test_supervision_that_is_missing_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    nothing = boxwright.Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), ())
    with pytest.raises(ModuleNotFoundError, match=r"needs supervision, which .* pip install \"boxwright\[train\]\""):
        nothing.to_supervision()


def test_a_link_stays_one_and_its_file_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("old", "none"):
        link, target = tmp_path / f"to_{name}", tmp_path / "there" / name
        link.symlink_to(target)
    (tmp_path / "there" / "old").write_text("old")
    for name in ("old", "none"):
        write_whole(tmp_path / f"to_{name}", lambda temporary: temporary.write_text("new"))
        assert (tmp_path / f"to_{name}").is_symlink()
        assert (tmp_path / "there" / name).read_text() == "new"
    assert len(list((tmp_path / "there").iterdir())) == 2


def test_a_file_system_that_refuses_is_no_traceback(monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "/some/file")

    monkeypatch.setattr("boxwright.__main__._run", refuse)
    assert main(["check", "DATA"]) == 2
    assert capsys.readouterr().err == "error: /some/file: Permission denied.\n"


def test_a_warning_is_one_line(monkeypatch, capsys):
    def warn(verb: str, arguments: list[str]) -> None:
        warnings.simplefilter("default")
        warnings.warn("an image has\nmany objects", stacklevel=2)

    monkeypatch.setattr("boxwright.__main__._run", warn)
    assert main(["check", "DATA"]) == 0
    assert capsys.readouterr().err == "warning: an image has many objects\n"


def test_every_verb_has_help_and_a_page(capsys):
    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert f"boxwright {verb}" in capsys.readouterr().out
        assert (ROOT / "docs" / f"{verb}.md").is_file()


def test_a_name_that_the_terminal_cannot_show_is_no_traceback():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    code = """import sys, boxwright.__main__ as cli
cli._run = lambda *_: print("gr\\xf6\\xdfe")
cli.main(["check"])
print(sys.stdout.errors)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == ["gr\\xf6\\xdfe", "strict"]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"boxwright {boxwright.__version__}\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_verb_that_is_ended_removes_what_is_half_written(tmp_path, monkeypatch, number, code):
    def run(*_):
        write_whole(tmp_path / "x", lambda temporary: signal.raise_signal(number))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    monkeypatch.setattr("boxwright.__main__._run", run)
    assert main(["import-weights"]) == code
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"]])
def test_a_reader_who_goes_away_is_no_fault(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "boxwright", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_help_stands_under_headings_in_one_spelling(capsys):
    for spelling in ("--image-size", "--image_size"):
        assert main(["train", "DATA", spelling, "8"]) == 2
        assert "--image-size must be at least 64" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert not re.search(r"--[\w.]*_", shown)
    headings = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == [
        "positional arguments:", "data:", "detector:", "training:", "machine:", "output:",
        "augmentation of the images:", "optimizer and schedule:", "options:",
    ]  # fmt: skip
    for name in inspect.signature(boxwright.train).parameters:
        assert len(re.findall(rf"^  (--)?{name.replace('_', '-')} ", shown, re.MULTILINE)) == 1, name
    assert shown.startswith("usage: boxwright train DATA [options]\n")
