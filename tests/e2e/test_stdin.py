"""Commands whose stdin is closed, or cannot be read, say so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster import BOUND

pytestmark = [pytest.mark.real, pytest.mark.slow]


def shoal(*arguments: str, redirected: str) -> subprocess.CompletedProcess[str]:
    """redirected: as a shell writes it."""
    command = ["sh", "-c", f'"$@" {redirected}', "sh", sys.executable, "-m", "shoal", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * BOUND, env={**os.environ, "COLUMNS": "200"})


@pytest.mark.parametrize("arguments", [("run", "-"), ("chat",)])
def test_a_closed_stdin_is_empty(arguments: tuple[str, ...]) -> None:
    found = shoal(*arguments, redirected="<&-")
    assert (found.returncode, found.stdout) == (2, "")
    assert "empty" in found.stderr and "Traceback" not in found.stderr and "Assertion" not in found.stderr


def test_a_stdin_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    found = shoal("run", "-", redirected=f"0>{tmp_path / 'file'}")
    assert found.returncode == 2
    assert found.stderr.startswith("error: stdin cannot be read")


def test_closed_streams_do_not_end_a_cluster() -> None:
    found = shoal("run", "Hi", "--nodes", "1", "--max-tokens", "2", redirected="<&- 2>&-")
    assert found.returncode == 0
    assert found.stdout.strip()
