"""A short version of `benchmarks/kill_storm.py`, in a process of its own: it forks."""

import os
import subprocess
import sys

import pytest

from helpers.benchmark_scripts import FOLDER


@pytest.mark.slow
def test_killed_runs_end_as_whole_ones():
    command = [sys.executable, str(FOLDER / "kill_storm.py"), "--runs", "3", "--models", "dense", "--seed", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "identical 3, lost 0" in ended.stdout
    assert "kills 0" not in ended.stdout
