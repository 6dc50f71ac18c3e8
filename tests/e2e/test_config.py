"""The configuration file, from outside: which command heeds what, what goes before it, and what `shoal config` says of it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import forks
from tests.support.cluster import Process, free_port

pytestmark = [pytest.mark.real, pytest.mark.slow]


def shoal(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("SHOAL_", "XDG_", "OPENAI_"))}
    return forks.run(words, {**plain, "COLUMNS": "300", **environment})


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def write(home: dict[str, str], text: str) -> Path:
    path = Path(shoal("config", "path", **home).stdout.strip())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def shown(home: dict[str, str], *words: str, **environment: str) -> dict[str, dict[str, Any]]:
    done = shoal("config", "show", "--json", *words, **home, **environment)
    assert done.returncode == 0, done.stderr
    return {f"{row['section']}.{row['key']}": row for row in json.loads(done.stdout)["settings"]}


def test_where_each_value_comes_from(home: dict[str, str]) -> None:
    path = write(home, '[head]\nport = 9000\nslots = 4\n\n[client]\napi-key = "sk-very-secret-1"\n')
    rows = shown(home, SHOAL_SLOTS="8", OPENAI_BASE_URL="http://user:pass@there:1")
    assert rows["head.port"] == {"section": "head", "key": "port", "value": 9000, "source": "file", "where": f"{path}:2"}
    assert rows["head.slots"]["value"] == 8 and rows["head.slots"]["where"] == "SHOAL_SLOTS"
    assert rows["head.queue"]["value"] == 512 and rows["head.queue"]["source"] == "default"
    assert rows["client.api-key"]["value"] == "***" and rows["client.api-key"]["where"] == f"{path}:6"
    assert rows["client.url"]["value"] == "http://***@there:1" and rows["client.url"]["where"] == "OPENAI_BASE_URL"
    assert shown(home, "--changed").keys() == {"head.port", "head.slots", "client.api-key"}
    plain = shoal("config", "show", "--changed", **home).stdout
    assert f"{path}:2" in plain and "sk-very" not in plain


def test_a_variable_that_means_nothing_is_told(home: dict[str, str]) -> None:
    done = shoal("config", "show", **home, SHOAL_SLOT="8")
    assert "SHOAL_SLOT is not a variable of shoal (did you mean 'SHOAL_SLOTS'?)" in done.stderr


def test_the_webhook_and_its_secret_are_known_and_not_shown(home: dict[str, str]) -> None:
    write(home, '[head]\nreplicas-max = 2\nmore-nodes = "webhook"\nwebhook = "https://there/hook?token=hush"\n')
    done = shoal("config", "show", **home, SHOAL_WEBHOOK_SECRET="whsec_hush")
    assert done.returncode == 0 and "hush" not in done.stdout + done.stderr and "SHOAL_WEBHOOK_SECRET" not in done.stderr


def test_init_writes_once_for_its_owner_alone_and_never_again(home: dict[str, str]) -> None:
    assert shoal("config", "init", **home).returncode == 0
    path = Path(shoal("config", "path", **home).stdout.strip())
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    assert shown(home, "--changed") == {}
    again = shoal("config", "init", **home)
    assert again.returncode == 2 and "was left alone" in again.stderr
    assert path.read_bytes() == before


def test_a_mistake_ends_every_command_that_heeds_the_file_in_one_line_and_no_help(home: dict[str, str]) -> None:
    path = write(home, "[head]\nprot = 1\n")
    for command in (("up",), ("serve",), ("join",), ("run", "x"), ("keys",), ("nodes",), ("config", "show")):
        done = shoal(*command, **home)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and line == f"error: {path}:2: [head] has no key 'prot' (did you mean 'port'?)", command
    assert shoal("up", "--help", **home).returncode == 0
    assert shoal("models", **home).returncode == 0


def test_a_key_in_a_file_that_others_can_read_is_warned_of(home: dict[str, str]) -> None:
    path = write(home, '[client]\napi-key = "sk-very-secret-1"\n')
    path.chmod(0o644)
    done = shoal("models", **home)
    assert done.returncode == 0 and f"chmod 600 {path}" in done.stderr and "sk-very" not in done.stderr


def test_flags_go_before_variables_and_those_before_the_file(home: dict[str, str]) -> None:
    """Told by the address that nobody answers at."""
    mine, theirs, third = free_port(), free_port(), free_port()
    write(home, f'[client]\nhead = "127.0.0.1:{mine}"\nurl = "http://127.0.0.1:{mine}"\n')
    assert f":{mine}" in shoal("nodes", **home).stderr
    assert f":{theirs}" in shoal("nodes", **home, SHOAL_HEAD=f"127.0.0.1:{theirs}").stderr
    assert f":{third}" in shoal("nodes", "--head", f"127.0.0.1:{third}", **home, SHOAL_HEAD=f"127.0.0.1:{theirs}").stderr
    assert f":{mine} does not answer" in shoal("run", "x", **home).stderr
    assert f":{theirs} does not answer" in shoal("run", "x", **home, OPENAI_BASE_URL=f"http://127.0.0.1:{theirs}").stderr


def test_a_cluster_is_started_by_what_the_file_says(tmp_path: Path, home: dict[str, str], smollm2: Path) -> None:
    port, control = free_port(), free_port()
    write(
        home,
        f'[head]\nmodel = "{smollm2}"\nport = {port}\ncontrol-port = {control}\nnodes = 1\n\n'
        '[node]\nmemory = "600MiB"\nthreads = 1\nruntime = "native"\nname = "not for local nodes"\n',
    )
    environment = {**home, "SHOAL_CONFIG": str(Path(home["HOME"]) / ".config" / "shoal" / "config.toml")}
    process = Process(tmp_path / "up.log", "up", **environment)
    try:
        process.until_said(f"API on http://127.0.0.1:{port}/v1")
        listed = shoal("nodes", "--json", "--head", f"127.0.0.1:{control}", **home)
        (node,) = json.loads(listed.stdout)["nodes"]
        assert (node["name"], node["memory_bytes"] <= 600 << 20, node["threads"]) == ("node-1", True, 1)
    finally:
        process.end()
