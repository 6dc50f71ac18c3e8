"""What a shell offers where the user presses Tab, and that it can be told to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment with a `shoal` on the path and nothing in its home."""
    command = tmp_path / "bin" / "shoal"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m shoal "$@"\n')
    command.chmod(0o755)
    source = os.pathsep.join(p for p in sys.path if p)
    return {"HOME": str(tmp_path), "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": source, "TERM": "dumb"}


def shell(name: str, script: str, home: dict[str, str]) -> str:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"not installed: {name}")
    quiet = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[name]
    done = subprocess.run([program, *quiet, "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=home)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("shoal ", {"up", "serve", "join", "run", "chat", "doctor", "nodes", "keys", "models"}),
        ("shoal ch", {"chat"}),
        ("shoal serve --precision ", {"auto", "fp32", "q8", "q4"}),
        ("shoal serve --api-w", {"--api-workers"}),
        ("shoal keys ", {"create", "list", "revoke"}),
    ],
)
def test_bash(line: str, offered: set[str], home: dict[str, str]) -> None:
    words = line.split(" ")
    given = " ".join(f"'{word}'" for word in words)
    script = f"shoal --install-completion >&2; . ~/.bash_completions/shoal.sh; COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; "
    found = shell("bash", script + 'complete -p shoal >&2 && _shoal_completion shoal; printf "%s\\n" "${COMPREPLY[@]}"', home)
    assert offered <= set(found.split())
    assert (len(words) == 2 and not words[1]) or set(found.split()) == offered
    assert "shoal.sh" in (Path(home["HOME"]) / ".bashrc").read_text()


@pytest.mark.parametrize(("name", "file"), [("zsh", ".zfunc/_shoal"), ("fish", ".config/fish/completions/shoal.fish")])
def test_another_shell_can_read_its_script(name: str, file: str, home: dict[str, str]) -> None:
    shell(name, "shoal --install-completion; true", home)
    written = Path(home["HOME"]) / file
    check = {"zsh": f"zsh -n {written}", "fish": f"fish --no-execute {written}"}[name]
    shell(name, check, home)
    assert "_SHOAL_COMPLETE" in written.read_text()


def test_fish_is_told_of_commands(home: dict[str, str]) -> None:
    out = shell("fish", 'shoal --install-completion >&2; source ~/.config/fish/completions/shoal.fish; complete -C"shoal jo"', home)
    assert out.startswith("join")
