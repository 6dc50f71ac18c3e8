"""Users without a home, or without one that they may write to, and disks that are full: one line that says what to do."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.support import forks
from tests.support.cluster import cluster

SOMEBODY = 54321  # a user that no machine knows
_CAPABILITY = "+dac_read_search"  # may read everything, so that the Python of these tests can be somewhere private, and write nothing
AS_SOMEBODY = ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
AS_SOMEBODY += [f"--inh-caps={_CAPABILITY}", f"--ambient-caps={_CAPABILITY}"]

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(
        os.name != "posix" or os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can become another user"
    ),
]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody may enter, and only root write to."""
    folder = Path(f"/tmp/shoal-test-home-{os.getpid()}")
    folder.mkdir(mode=0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def home(kind: str, shared: Path) -> list[str]:
    """Arguments of `env`."""
    if kind == "another user's":
        (shared / "alice").mkdir(mode=0o755)
        os.chown(shared / "alice", 1000, 1000)
    return {"none": ["--unset=HOME"], "/": ["HOME=/"], "read-only": [f"HOME={shared}"], "another user's": [f"HOME={shared}/alice"]}[kind]


def shoal(*arguments: str, environment: list[str]) -> subprocess.CompletedProcess[str]:
    mine = [f"--unset={key}" for key in os.environ if key.startswith(("SHOAL_", "XDG_", "HF_"))]
    options = [word for word in environment if word.startswith("--")]
    variables = [word for word in environment if not word.startswith("--")]
    command = [*AS_SOMEBODY, "env", *mine, *options, "COLUMNS=400", *variables, sys.executable, "-m", "shoal", *arguments]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode in (1, 2) and len(lines) == 1 and lines[0].startswith("error: "), done.stdout + done.stderr
    return lines[0]


UP = ("up", "--secure", "--port", "0", "--control-port", "0", "--nodes", "1")


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        *((kind, ("models", "pull", "smollm2-135m")) for kind in ("none", "/", "read-only", "another user's")),
        *(("none", command) for command in (("models",), ("keys", "create", "x"), ("nodes",), ("join", "127.0.0.1:9"), UP)),
        *(("read-only", command) for command in (("keys", "create", "x"), ("join", "127.0.0.1:9", "--code", "7QFK-3M9X"), UP)),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_home_that_cannot_be_used_is_one_line_that_says_what_to_do(
    shared: Path, smollm2: Path, kind: str, command: tuple[str, ...]
) -> None:
    model = ("--model", str(smollm2)) if command is UP else ()
    line = one_line(shoal(*command, *model, environment=home(kind, shared)))
    assert "SHOAL_CACHE" in line or "--data" in line
    assert "network" not in line  # which has nothing to do with it
    if kind == "none":
        assert "this user has no home folder; set HOME, or SHOAL_CACHE" in line


def test_doctor_counts_a_home_that_cannot_be_used_as_wrong(shared: Path) -> None:
    for kind in ("none", "read-only"):
        done = shoal("doctor", environment=home(kind, shared))
        assert done.returncode == 1
        (line,) = [line for line in done.stdout.splitlines() if line.split()[1] == "cache"]
        assert line.startswith("wrong cache") and "SHOAL_CACHE" in line


@pytest.mark.parametrize("kind", ["none", "/"])
def test_without_a_home_a_cache_is_enough(shared: Path, smollm2: Path, kind: str) -> None:
    cache = shared / "cache"
    cache.mkdir()
    os.chown(cache, SOMEBODY, SOMEBODY)
    environment = [*home(kind, shared), f"SHOAL_CACHE={cache}"]
    assert shoal("keys", "create", "alice", environment=environment).returncode == 0
    asked = ("Tell me about Paris.", "--nodes", "1", "--threads", "1", "--memory", "600MiB", "--max-tokens", "8", "--model", str(smollm2))
    done = shoal("run", *asked, environment=environment)
    assert done.returncode == 0 and "Paris" in done.stdout, done.stderr
    assert {path.stat().st_uid for path in cache.rglob("*")} == {SOMEBODY}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount a disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        for piece in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(piece)) == piece:
                    pass
    assert shutil.disk_usage(disk).free == 0


def test_a_full_disk_is_said_and_no_file_is_blamed_for_it(small_disk: Path, tmp_path: Path, smollm2: Path) -> None:
    fill(small_disk)
    with cluster(tmp_path) as made:
        process = made.start(*UP, "--threads", "1", "--model", str(smollm2), SHOAL_CACHE=str(small_disk))
        assert process.wait() in (1, 2), process.describe()
        said = [process.said]
    for command in (("keys", "create", "x"), ("models", "pull", "smollm2-135m")):
        done = forks.run(command, {**os.environ, "COLUMNS": "400", "SHOAL_CACHE": str(small_disk), "SHOAL_HOME": ""})
        assert done.returncode in (1, 2), done.stderr
        said.append(done.stderr)
    for text in said:
        assert "full" in text or "No space left" in text, text
        assert "Traceback" not in text and "is not a key file" not in text


def test_a_disk_that_gets_full_meanwhile_ends_what_needs_it_and_nothing_else(small_disk: Path, tmp_path: Path, smollm2: Path) -> None:
    with cluster(tmp_path) as made:
        made.start(
            "up", "--port", str(made.port), "--control-port", str(made.control_port), "--threads", "1", "--memory", "600MiB", "--nodes", "1",
            "--model", str(smollm2), SHOAL_CACHE=str(small_disk), TMPDIR=str(small_disk),
        )  # fmt: skip
        made.until_ready()
        before = made.texts("The capital of France is")
        fill(small_disk)
        assert made.texts("The capital of France is") == before
        body = {"input": "Hello", "max_output_tokens": 2, "metadata": {str(i): "x" * 500 for i in range(16)}}
        kept: list[httpx.Response] = [made.http.post("/v1/responses", json={**body, "store": store}) for store in (False, True)]
        assert kept[0].status_code == 200, kept[0].text
        assert kept[1].status_code in (503, 507) and "store: false" in kept[1].json()["error"]["message"], kept[1].text
        assert made.texts("The capital of France is") == before
        assert "Traceback" not in made.head.said
