"""The command line: what it prints, how it ends, and that a mistake is answered with a line and not with a stack."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.config import INSTRUCTION_SETS
from shoal.native import instruction_sets
from tests.support import forks
from tests.support.cluster import MODEL, Cluster, Process, cluster, free_port, gone, served

pytestmark = pytest.mark.slow

COMMANDS = ["up", "serve", "join", "run", "chat", "console", "batch", "nodes", "models", "plan", "bench", "doctor", "service"]


def shoal(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = forks.run(arguments, {**os.environ, "COLUMNS": "200", **environment})
    assert "Traceback" not in done.stderr, done.stderr
    return done


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As a user starts it, imports and all."""
    done = subprocess.run(
        [sys.executable, "-m", "shoal", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def says(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert done.returncode == status, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def as_json(*arguments: str) -> Any:
    done = shoal(*arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Help and errors


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = shoal(command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_help_states_defaults_and_brackets_and_finds_flags_under_what_they_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = shoal("up", "--help").stdout
    assert "[default: 8000]" in text and "[default: 8192]" in text and "hf:org/name[:QUANT][@revision]" in text
    places = [
        text.index(part) for part in ("Options ─", "--threads", "Model ─", "--context", "API ─", "--stall", "Cluster ─", "--control-port")
    ]
    assert places == sorted(places)


def test_no_command_is_help() -> None:
    text = shoal("--help").stdout
    assert all(command in text for command in COMMANDS)


def test_the_version() -> None:
    assert shoal("--version").stdout.startswith("shoal ")


@pytest.mark.parametrize("arguments", [("--version",), ("jion",), ("serve", "--precision", "fp99"), ("models", "list", "--json")])
def test_a_fork_says_what_a_started_command_says(arguments: tuple[str, ...]) -> None:
    """Most of these tests rely on it."""
    real, forked = started(*arguments), shoal(*arguments)
    assert (real.returncode, real.stdout, real.stderr) == (forked.returncode, forked.stdout, forked.stderr)


FOREIGN = next(name for name in INSTRUCTION_SETS if name not in instruction_sets())
"""An instruction set that this processor lacks."""

MISTAKES: list[tuple[list[str], str]] = [
    (["--nope"], "--nope"),
    (["jion"], "join"),
    (["up", "--port", "x"], "--port"),
    (["up", "--port", "70000"], "--port"),
    (["up", "--nodes", "0"], "--nodes"),
    (["serve", "--precision", "fp99"], "): 'fp99' is not one of 'auto'"),
    (["serve", "--model", "nope"], MODEL),
    (["serve", "--model", "/no/such.gguf"], "/no/such.gguf"),
    (["serve", "--kv-tokens", "5"], "--kv-tokens"),
    (["serve", "--host", "192.0.2.1"], "192.0.2.1"),
    (["join", "nowhere"], "HOST:PORT"),
    (["join", "no-such-host.invalid:7420"], "no-such-host.invalid"),
    (["join", "127.0.0.1:1", "--memory", "lots"], "lots"),
    (["join", "127.0.0.1:1", "--isa", "mmx"], "mmx"),
    (["join", "127.0.0.1:1", "--isa", FOREIGN], f"--isa {FOREIGN} cannot be used here: this processor has"),
    (["models", "rm", "nope"], "nope"),
    (["models", "pull", "nope"], "nope"),
    (["plan", MODEL, "--node", "big"], "big"),
]


@pytest.mark.parametrize(("arguments", "word"), MISTAKES)
def test_a_mistake_is_a_line_and_status_2(arguments: list[str], word: str) -> None:
    says(shoal(*arguments), 2, word)


def test_brackets_of_an_error_are_no_markup() -> None:
    says(shoal("run", "--model", "hf:a[bold]/b"), 2, "hf:a[bold]/b")


@pytest.mark.parametrize(
    ("name", "value", "word"), [("SHOAL_PORT", "abc", "SHOAL_PORT"), ("SHOAL_PRECISION", "fp99", "fp99"), ("SHOAL_CONTEXT", "-1", "-1")]
)
def test_a_wrong_variable_is_named(name: str, value: str, word: str) -> None:
    says(shoal("serve", **{name: value}), 2, word)


@pytest.mark.parametrize("command", [["doctor", "--measure"], ["up", "--model", MODEL]])
def test_an_instruction_set_that_is_not_here_is_told_at_once(command: list[str]) -> None:
    says(shoal(*command, SHOAL_ISA=FOREIGN), 2, f"--isa {FOREIGN} cannot be used here: this processor has")


@pytest.mark.parametrize("command", [["run", "hi", "--url"], ["nodes", "--head"]])
def test_where_nobody_answers_the_status_is_1(command: list[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    says(shoal(*command, f"http://{address}" if "run" in command else address), 1, "answer", address)


@pytest.mark.parametrize("flag", ["--port", "--control-port"])
def test_a_port_in_use_is_said(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"--port": "0", "--control-port": "0", flag: str(taken.getsockname()[1])}
        says(shoal("serve", *(word for pair in ports.items() for word in pair)), 2, "in use")


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} -m shoal models | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr


# What a script reads


def test_models_as_json() -> None:
    assert MODEL in [row["name"] for row in as_json("models", "list", "--json")]


def test_doctor_as_json() -> None:
    assert {"shoal", "kernels", "memory", "cache"} <= {row["check"] for row in as_json("doctor", "--json")}


@pytest.mark.real
def test_plan_splits_over_the_nodes_that_it_is_given() -> None:
    plan = as_json("plan", MODEL, "--node", "1GiB", "--node", "1GiB:0.5", "--json")
    assert plan["model"] == MODEL
    assert sum(s["weight_bytes"] for s in plan["stages"]) > 80 << 20


@pytest.mark.real
def test_too_little_memory_says_how_much_is_missing() -> None:
    says(shoal("plan", MODEL, "--node", "10MiB"), 1, "missing")


# Commands that run a cluster


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with served(tmp_path_factory.mktemp("cli"), 2) as made:
        yield made


@pytest.mark.real
def test_nodes_lists_who_holds_what(two: Cluster) -> None:
    listed = as_json("nodes", "--head", f"127.0.0.1:{two.control_port}", "--json")
    assert (listed["model"], listed["state"]) == (MODEL, "serving")
    assert {node["name"] for node in listed["nodes"]} == {"n0", "n1"}
    assert {node["state"] for node in listed["nodes"]} == {"serving"}


@pytest.mark.real
def test_run_asks_a_cluster_that_is_there(two: Cluster) -> None:
    done = shoal("run", "Tell me about Paris.", "--url", two.url, "--max-tokens", "16")
    assert (done.returncode, "Paris" in done.stdout) == (0, True)


@pytest.mark.real
def test_run_says_what_the_server_refuses(two: Cluster) -> None:
    says(shoal("run", "x", "--url", two.url, "--temperature", "-1"), 2, "temperature")


@pytest.mark.real
def test_run_starts_a_cluster_and_ends_it() -> None:
    done = started("run", "Tell me about Paris.", "--nodes", "2", "--threads", "1", "--max-tokens", "8")
    assert (done.returncode, "Paris" in done.stdout) == (0, True)
    assert "tokens/s" in done.stderr


@pytest.mark.real
def test_run_without_memory_loads_nothing_and_says_what_is_missing() -> None:
    says(started("run", "x", "--nodes", "1", "--threads", "1", "--memory", "20MiB"), 1, "missing")


@pytest.mark.real
def test_ctrl_c_in_an_answer_is_status_130(tmp_path: Path) -> None:
    words = ("run", "A very long story about a ship", "--nodes", "1", "--max-tokens", "4000", "--threads", "1")
    process = Process(tmp_path / "run.log", *words)
    try:
        process.until_said("ship")
        family = process.family()
        process.signal(signal.SIGINT)
        assert process.wait() == 130
        gone(family)
        assert "Traceback" not in process.said
    finally:
        process.end()


def test_ctrl_c_while_waiting_for_nodes_ends_serve(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        head = made.serve()
        head.until_said("waiting for 1 node")
        head.signal(signal.SIGINT)
        assert head.wait() == 0


@pytest.mark.parametrize(("flag", "value", "word"), [("--cluster", "a b", "a b"), ("--discovery", "bad", "is not one of mdns")])
def test_a_head_that_could_not_be_announced_does_not_even_look_for_its_model(flag: str, value: str, word: str) -> None:
    says(shoal("serve", flag, value, "--model", "/no/such/model.gguf", "--port", "0"), 2, word)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "hi", "--temperature", "nan", "--url", "http://127.0.0.1:1"],
        ["run", "hi", "--url", "http://[::bad"],
        ["plan", MODEL, "--node", "1GiB:inf"],
        ["chat", "--url", "http://127.0.0.1:1"],  # stdin is /dev/null: uvloop aborts the process (SIGABRT)
    ],
)
def test_a_mistake_shows_no_stack(arguments: list[str]) -> None:
    assert shoal(*arguments).returncode in (0, 1, 2)
