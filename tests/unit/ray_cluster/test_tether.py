"""A process that dies with the pipe that is its stdin."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster import BOUND, free_port

pytestmark = [pytest.mark.slow]


def tethered(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "shoal.ray_cluster.tether", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_it_is_shoal() -> None:
    with tethered("--version") as process:
        assert process.stdout is not None
        assert process.stdout.read().startswith("shoal ")
    assert process.returncode == 0


def test_a_failure_is_its_own() -> None:
    with tethered("join", "127.0.0.1:notaport") as process:
        assert process.wait(BOUND) == 2


def test_it_is_killed_when_the_pipe_ends(tmp_path: Path) -> None:
    with tethered("serve", f"--port={free_port()}", f"--control-port={free_port()}", "--discovery=none") as process:
        assert process.stdout is not None and process.stdin is not None
        while "API on" not in (text := process.stdout.readline()):
            assert text, "it ended"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(BOUND) == -signal.SIGKILL
