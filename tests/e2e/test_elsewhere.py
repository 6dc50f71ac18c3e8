"""What Windows lacks is lacking: every module is imported, and the commands that compute run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def elsewhere(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.elsewhere", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_every_module_can_be_imported() -> None:
    done = elsewhere("import")
    assert done.returncode == 0, done.stderr


@pytest.mark.real
def test_a_question_is_answered() -> None:
    done = elsewhere("shoal", "run", "Say hello.", "--nodes", "1", "--max-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "ready in" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.real
def test_processes_for_the_api_are_refused() -> None:
    done = elsewhere("shoal", "up", "--nodes", "1", "--port", "0", "--api-workers", "2")
    assert done.returncode == 2, done.stderr
    assert "--gateway-port need Unix sockets" in done.stderr
