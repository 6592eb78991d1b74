"""The documents hold: the quickstart's commands run as written, links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str = "") -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_quickstart_works_from_its_first_line_to_its_last(tmp_path):
    commands = [line for block in blocks(ROOT / "docs" / "quickstart.md") for line in block.splitlines()]
    commands.remove('python -m pip install ".[train]" && boxwright demo')  # installed already; CI runs it as written
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": paths, "BOXWRIGHT_CACHE": str(tmp_path / "cache")}
    script = "\n".join(blocks(ROOT / "docs" / "quickstart.md", "python"))
    for command in [*commands, f"python - <<'END'\n{script}\nEND"]:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs/cells/batches.png").is_file()
    assert (tmp_path / "runs/cells/test/index.html").is_file()
    assert (tmp_path / "found").is_dir()
    assert done.stdout.count("\n") == 72


@pytest.mark.slow
def test_the_first_python_of_the_readme_works_in_a_clone(tmp_path, monkeypatch, capsys):
    (tmp_path / "src").symlink_to(ROOT / "src")
    monkeypatch.chdir(tmp_path)
    exec(blocks(ROOT / "README.md", "python")[0], {})  # noqa: S102
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) > 5
    assert {line.split()[0] for line in printed} <= {"Platelets", "RBC", "WBC"}
    assert (tmp_path / "boxes.png").is_file()


def test_the_first_screen_has_a_picture_and_a_clone():
    text = (ROOT / "README.md").read_text()
    first = text.partition("## ")[0]
    (picture,) = re.findall(r"!\[.+\]\((.+?)\)", first)
    assert (ROOT / picture).stat().st_size < 100_000
    assert "git clone" in first
    assert "](docs/numbers.md)" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_commands_that_ci_runs_stand_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert '\npython -m pip install ".[train]" && boxwright demo\n' in text
    assert '\npython -m pip install -e ".[dev]" && python -m pytest\n' in text
