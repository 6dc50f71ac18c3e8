"""`shoal service` from outside: what it writes, what it tells, what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$HOME/asked"
case "$*" in *is-active*) echo active;; *is-enabled*) echo enabled;; *restart*) [ -e "$HOME/broken" ] && { echo "no bus" >&2; exit 1; };; esac
exit 0
"""


class Home:
    def __init__(self, folder: Path, systemctl: bool) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        self.shoal = programs / "shoal"
        self._write(self.shoal, f'#!{sys.executable}\nimport sys\nfrom shoal.cli.app import main\nsys.argv[0] = "{self.shoal}"\nmain()\n')
        if systemctl:
            self._write(programs / "systemctl", SYSTEMCTL)
        self.environment = {
            "HOME": str(folder),
            "PATH": str(programs),
            "USER": "alice",
            "COLUMNS": "200",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(self.shoal), "service", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**self.environment, **more},
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def unit(self, kind: str) -> Path:
        return self.folder / ".config" / "systemd" / "user" / f"shoal-{kind}.service"

    @property
    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().splitlines()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, systemctl=True)


def test_a_head_is_installed_looked_at_and_removed(home: Home) -> None:
    done = home.run("install", "serve", "--host", "192.168.1.20", "--grace", "60")
    assert done.returncode == 0, done.stderr
    text = home.unit("serve").read_text()
    assert f"ExecStart={home.shoal} serve --host 192.168.1.20 --grace 60\n" in text and "TimeoutStopSec=75\n" in text
    assert home.asked == ["--user daemon-reload", "--user enable shoal-serve.service", "--user restart shoal-serve.service"]
    assert f"wrote {home.unit('serve')}" in done.stdout
    assert "loginctl enable-linger alice" in done.stdout and not any("linger" in asked for asked in home.asked)

    done = home.run("status")
    assert done.returncode == 0 and "shoal-serve.service: active, enabled" in done.stdout

    done = home.run("uninstall")
    assert done.returncode == 0 and not home.unit("serve").exists()
    assert "--user disable --now shoal-serve.service" in home.asked


def test_where_there_is_no_systemd_it_says_what_to_run(tmp_path: Path) -> None:
    home = Home(tmp_path, systemctl=False)
    done = home.run("install", "join", "192.168.1.20:7420", "--memory", "4GiB")
    assert done.returncode == 0, done.stderr
    assert "systemctl is not here; where it is, run: systemctl --user enable shoal-join.service" in done.stdout
    assert "join 192.168.1.20:7420 --memory 4GiB" in home.unit("join").read_text()


def test_what_systemd_refuses_is_told_with_what_is_left_to_do(home: Home) -> None:
    (home.folder / "broken").touch()
    done = home.run("install", "join")
    assert done.returncode == 1
    assert "no bus; what was left to run: systemctl --user restart shoal-join.service" in done.stderr


def test_without_starting_it_is_only_written(home: Home) -> None:
    done = home.run("install", "--no-start", "join")
    assert home.asked == ["--user daemon-reload"]
    assert "to start it: systemctl --user enable --now shoal-join.service" in done.stdout


def test_what_the_shell_has_and_a_service_has_not(home: Home) -> None:
    done = home.run("install", "join", SHOAL_CACHE=str(home.folder / "cache"))
    assert (
        f"it does not see SHOAL_CACHE of this shell: what it is to have belongs into {home.folder}/.config/shoal/service.env" in done.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["install", "chat"], "serve or join, not chat"),
        (["install", "serve", "--nope"], "No such option: --nope"),
        (["install", "join", "nowhere", "--memory", "lots", "--nope=1"], "--nope"),
        (["install", "join", "--code", "7QFK-3M9X"], "run `shoal join --code …` by hand first"),
        (["install", "serve", "--discovery", "redis://user:secret@host:6379"], "SHOAL_DISCOVERY"),
        (["install", "--account", "nobody", "serve"], "add --system"),
        (["install", "--system", "serve"], "--account NAME"),
        (["install", "--system", "--account", "root", "serve"], "must not run as root"),
        (["install", "--system", "--account", "no-such-one", "serve"], "useradd"),
        (["uninstall"], "no service to remove"),
        (["uninstall", "chat"], "serve or join, not chat"),
    ],
)
def test_a_mistake_changes_nothing(home: Home, arguments: list[str], words: str) -> None:
    done = home.run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (home.folder / ".config").exists() and not (home.folder / "asked").exists()
