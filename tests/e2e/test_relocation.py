"""A home that an earlier version has left is taken over by the first command that needs what is in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]


def command(*words: str, **environment: str) -> subprocess.Popen[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("SHOAL_", "XDG_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "shoal", *words],
        env={**plain, "COLUMNS": "400", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    return out, err


def test_two_commands_at_once_find_the_keys_and_one_of_them_tells_it(tmp_path: Path) -> None:
    home, old = str(tmp_path / "home"), tmp_path / "home" / ".cache" / "shoal"
    said(command("keys", "create", "alice", HOME=home, SHOAL_CACHE=str(old)))  # as earlier versions kept it
    assert (old / "api" / "keys.sqlite").exists()
    both = [command("keys", "list", HOME=home) for _ in range(2)]
    answers = [said(process) for process in both]
    assert all("alice" in out for out, _ in answers)
    told = [line for _, err in answers for line in err.splitlines() if line.strip()]
    new = tmp_path / "home" / ".local" / "share" / "shoal"
    assert len(told) == 1 and f"api to {new}" in told[0]
    assert not (old / "api").exists() and (new / "api" / "keys.sqlite").stat().st_mode & 0o777 == 0o600


def test_shoal_home_leaves_all_where_it_was(tmp_path: Path) -> None:
    home, old = str(tmp_path / "home"), tmp_path / "home" / ".cache" / "shoal"
    said(command("keys", "create", "alice", HOME=home, SHOAL_CACHE=str(old)))
    out, err = said(command("keys", "list", HOME=home, SHOAL_HOME=str(old)))
    assert "alice" in out and err == ""
    assert not (tmp_path / "home" / ".local").exists()
