"""The text of a unit, and that systemd takes it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from shoal.cli.systemd_unit import JOIN_STOPS, Account, quoted, stops_after, unit

SERVE = ["/opt/shoal/bin/shoal", "serve", "--host", "192.168.1.20"]
ME = Account("games", "/var/lib/shoal")


def settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


@pytest.mark.parametrize(
    ("word", "as_written"),
    [
        ("--host", "--host"),
        ("192.168.1.20:7420", "192.168.1.20:7420"),
        ("50%", "50%%"),
        ("a$b", "a$$b"),
        ("two words", '"two words"'),
        ('a "b" \\c', '"a \\"b\\" \\\\c"'),
        ("a\nb", '"a\\nb"'),
        ("", '""'),
        ("it's", '"it\'s"'),
        ("ü", '"ü"'),
    ],
)
def test_words_are_quoted(word: str, as_written: str) -> None:
    assert quoted(word) == as_written


def test_it_ends_as_ctrl_c_does_and_comes_again_after_a_failure() -> None:
    text = settings(unit(SERVE, stops_after("serve", 30)))
    assert text["ExecStart"] == "/opt/shoal/bin/shoal serve --host 192.168.1.20"
    assert (text["KillSignal"], text["KillMode"]) == ("SIGTERM", "mixed")  # the head sends its own processes home
    assert (text["Restart"], text["StartLimitIntervalSec"]) == ("on-failure", "0")
    assert 30 < float(text["TimeoutStopSec"]) < 60


def test_a_node_has_time_to_move_its_layers() -> None:
    assert stops_after("join", 0) == JOIN_STOPS


def test_whose_it_is() -> None:
    own, of_system = settings(unit(SERVE, 45)), settings(unit(SERVE, 45, ME))
    assert "User" not in own and own["WantedBy"] == "default.target"
    assert of_system["User"] == "games" and of_system["WantedBy"] == "multi-user.target"
    assert of_system["ReadWritePaths"] == "/var/lib/shoal" and of_system["ProtectSystem"] == "strict"
    assert of_system["After"] == "network-online.target"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="not installed: systemd-analyze")
@pytest.mark.slow
@pytest.mark.parametrize("account", [None, ME])
def test_systemd_takes_it(account: Account | None, tmp_path: Path) -> None:
    path = tmp_path / "shoal-serve.service"
    path.write_text(unit([shutil.which("true") or "", "serve", "50% $HOME", 'a "b"'], 45, account))
    manager = [] if account else ["--user"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(["systemd-analyze", *manager, "verify", str(path)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert path.name not in done.stderr and str(path) not in done.stderr
