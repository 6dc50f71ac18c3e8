"""Without the redis package everything runs but `--discovery redis://…`, which says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]

WITHOUT = """
import sys
sys.modules["redis"] = None  # to who imports it, it is not there
from shoal.cli.app import main
main()
"""


def shoal(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize("command", ["serve", "join"])
def test_who_asks_for_redis_is_told_the_extra(command: str) -> None:
    done = shoal(command, "--discovery", "redis://:secret@127.0.0.1:6379")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "pip install 'shoal[redis]'" in line
    assert "secret" not in line


def test_nothing_else_needs_it() -> None:
    assert shoal("models").returncode == 0
    done = shoal("join", "127.0.0.1:9x")
    assert "shoal[redis]" not in done.stderr and done.returncode == 2
