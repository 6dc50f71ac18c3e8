"""What the commands print: help that comes at once, tables that fit, JSON for scripts, and what `up` and `join` say while they run."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from shoal.cli.app import app
from shoal.cli.show import Rows, Screen
from shoal.errors import UnknownModel, UserError
from shoal.models.reference import Reference
from shoal.models.sources import find
from shoal.spelling import suggestion
from tests.support.cluster import MODEL, Process, cluster, free_port, until
from tests.support.proxy import Proxy
from tests.support.terminal import CTRL_C, ENTER, piped, terminal

# Help

HEAVY = {
    "cryptography",
    "fastapi",
    "grpc",
    "httpx2",
    "numpy",
    "onnx",
    "prompt_toolkit",
    "psutil",
    "tokenizers",
    "uvicorn",
    "uvloop",
}
_EVERY_HELP = """
import sys
from typer.testing import CliRunner
before = set(sys.modules)
from shoal.cli.app import app
for words in {commands}:
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0 and "Usage" in done.output, (words, done.output)
print(*{{m.split(".")[0] for m in set(sys.modules) - before}})
"""


def commands() -> list[tuple[str, ...]]:
    """Every command and subcommand there is, as words."""
    found: list[tuple[str, ...]] = [()]
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        found += [(name,), *((name, sub) for sub in getattr(command, "commands", ()))]
    return found


def options_of(words: tuple[str, ...]) -> list[Any]:
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    return [
        p
        for p in command.params
        if p.param_type_name == "option" and p.name not in ("help", "version", "install_completion", "show_completion")
    ]


@pytest.mark.slow
def test_help_loads_nothing_that_works() -> None:
    script = _EVERY_HELP.format(commands=commands())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) & HEAVY == set()


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_flag_has_its_variable(words: tuple[str, ...]) -> None:
    for option in options_of(words):
        flag = next(name for name in option.opts if name.startswith("--"))
        variables = option.envvar if isinstance(option.envvar, list) else [option.envvar]
        assert variables[0] == "SHOAL_" + flag[2:].replace("-", "_").upper(), (words, flag)


@pytest.mark.slow
def test_help_names_the_variables() -> None:
    text = piped("", "run", "--help", COLUMNS="200").stdout
    assert "SHOAL_MAX_TOKENS" in text and "SHOAL_URL" in text and "OPENAI_BASE_URL" in text and "SHOAL_CONTEXT" in text


@pytest.mark.slow
def test_a_variable_is_taken_by_a_commands_own_flags_too() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    done = piped("", "run", "hi", SHOAL_URL=address)
    assert (done.returncode, address in done.stderr) == (1, True)


# Misspelt


def test_a_misspelt_model_is_guessed() -> None:
    with pytest.raises(UnknownModel, match="did you mean 'smollm2-135m'"):
        find("smolm2-135M")
    assert "did you mean" not in str(UnknownModel("gpt-4", ["smollm2-135m"]))
    assert suggestion("qwen", []) == ""


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B-Instruct", "org/name@main"])
def test_a_model_of_the_hub_is_told_from_a_path(name: str) -> None:
    assert str(Reference.parse(name)) == f"hf:{name}"


@pytest.mark.parametrize("name", ["./Qwen/x", "models/x.gguf", "/a/b"])
def test_a_path_is_no_model_of_the_hub(name: str) -> None:
    with pytest.raises(UserError, match="no such file") as raised:
        find(name)
    assert "hf:" not in str(raised.value)


# Tables

ROWS = [
    {"name": "node-1", "address": "192.168.100.101:54321", "threads": 4, "limits": "60/min\n2 at once"},
    {"name": "a-longer-name", "address": "[bold]", "threads": 12, "limits": "-"},
]


def printed(width: int, is_terminal: bool) -> list[str]:
    file = io.StringIO()
    console = Screen(file=file, force_terminal=is_terminal, width=width if is_terminal else None, color_system=None)
    console.print(Rows(ROWS, "title"))
    return [line.rstrip() for line in file.getvalue().rstrip("\n").split("\n")]


def test_a_table_in_a_pipe_is_plain_and_whole() -> None:
    assert printed(40, is_terminal=False) == [
        "title",
        "name           address                threads  limits",
        "node-1         192.168.100.101:54321        4  60/min, 2 at once",
        "a-longer-name  [bold]                      12  -",
    ]


def test_a_table_on_a_terminal_fits_or_becomes_paragraphs() -> None:
    wide, narrow = printed(80, is_terminal=True), printed(40, is_terminal=True)
    assert "192.168.100.101:54321" in wide[3] and "node-1" in wide[3]
    assert narrow[1:6] == ["name     node-1", "address  192.168.100.101:54321", "threads  4", "limits   60/min, 2 at once", ""]
    assert all(len(line) <= 80 for line in wide) and all(len(line) <= 40 for line in narrow)
    assert "…" not in "".join(wide + narrow)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("command", ["models", "doctor", "keys"])
def test_nothing_is_cut_at_the_edge_of_a_terminal(command: str, columns: int, tmp_path: Path) -> None:
    with terminal(command, columns=columns, SHOAL_CACHE=str(tmp_path)) as shown:
        shown.wait()
        assert "…" not in shown.screen, shown.screen


@pytest.mark.slow
def test_no_colour_where_none_is_wanted() -> None:
    with terminal("models", "pull", "nope", NO_COLOR="1") as shown:
        assert shown.wait() == 2
        assert "\x1b[31m" not in shown.raw
    with terminal("models", "pull", "nope") as shown:
        shown.wait()
        assert "\x1b[31m" in shown.raw


# JSON

PROSE = re.compile(r"\d(\.\d+)? ?([KMGT]i?B|B|ms|s|s ago|yes|no)$")


def no_prose(value: Any, path: str = "") -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in ("result", "events"):  # sentences for people, beside the figures
                no_prose(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            no_prose(inner, path)
    elif isinstance(value, str):
        assert not PROSE.search(value), (path, value)


def as_json(*arguments: str) -> Any:
    done = piped("", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_figures_for_scripts_are_numbers_that_name_their_unit() -> None:
    models, checks = as_json("models", "list", "--json"), {row["check"]: row for row in as_json("doctor", "--json")}
    no_prose([models, list(checks.values())])
    assert {type(row["bytes"]) for row in models} == {int} and {type(row["fetched"]) for row in models} == {bool}
    assert checks["memory"]["available_bytes"] > 0 and checks["cache"]["free_bytes"] > 0


@pytest.mark.slow
@pytest.mark.real
def test_a_plan_for_scripts_and_for_people() -> None:
    plan = as_json("plan", MODEL, "--node", "1GiB", "--json")
    no_prose(plan)
    assert (plan["stages"][0]["first_layer"], plan["stages"][-1]["last_layer"]) == (0, 29)
    shown = piped("", "plan", MODEL, "--node", "1GiB").stdout
    assert "MiB" in shown and str(plan["stages"][0]["weight_bytes"]) not in shown


# Clusters


@pytest.mark.slow
@pytest.mark.real
def test_nodes_try_until_a_head_comes_and_again_when_it_is_lost(tmp_path: Path) -> None:
    """One at its port, one at a forwarded port with nothing behind it yet."""
    with cluster(tmp_path) as made, contextlib.closing(Proxy("127.0.0.1", 0, ("127.0.0.1", made.control_port))) as forward:
        node, far = made.join("--name", "early"), made.join_from((), f"127.0.0.1:{forward.port}", "--name", "far")
        node.until_said(f"127.0.0.1:{made.control_port}: nothing listens there (connection refused); trying")
        far.until_said(f"127.0.0.1:{forward.port}: what listens there hangs up at once")
        made.serve("--min-nodes", "2")
        node.until_said(f"joined 127.0.0.1:{made.control_port} as early")
        far.until_said(f"joined 127.0.0.1:{forward.port} as far")
        made.until_ready()
        far.end()
        made.head.popen.kill()
        node.until_said("the head was lost (")
        made.serve("--min-nodes", "1")
        node.until_said("again as early")
        assert node.said.count("the head was lost") == 1


@pytest.mark.slow
def test_a_host_that_is_not_there_is_not_tried_again() -> None:
    done = piped("", "join", "no-such-host.invalid:7420")
    assert (done.returncode, done.stderr.count("\n"), "no-such-host.invalid" in done.stderr) == (2, 1, True), done.stderr


@pytest.mark.slow
@pytest.mark.real
def test_a_node_says_what_it_does_and_up_at_a_terminal_shows_the_new_split_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        ports = ("--port", str(made.port), "--control-port", str(made.control_port))
        with terminal("up", "--nodes", "1", *ports, "--threads", "1", columns=200, starts=True) as head:
            for text in (f"API on {made.url}", "on this machine; for others start with --host ADDRESS", "0-29"):
                until(lambda text=text: text in head.screen, lambda: head.screen)
            node = made.join("--name", "second", "--memory", "1GiB")
            node.until_said(" as second")
            asked = ("--head", f"127.0.0.1:{made.control_port}")
            listed = piped("", "nodes", *asked)
            assert (listed.returncode, listed.stderr) == (0, "")  # nothing of TLS
            found = as_json("nodes", *asked, "--json")
            no_prose(found)
            assert {row["name"]: row["memory_bytes"] > 0 for row in found["nodes"]} == {"node-1": True, "second": True}
            assert piped("", "nodes", "drain", "node-1", *asked).returncode == 0
            node.until_said("loading layers 0-29 of smollm2-135m")
            node.until_said("serving layers 0-29: ")
            until(lambda: re.search(r"second +0-29", head.screen), lambda: head.screen)
            head.type(CTRL_C)
            node.until_said("left: the head shut down")
            assert head.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["up", "run", "chat"])
def test_ctrl_c_while_a_cluster_starts(command: str) -> None:
    ports = ("--port", "0", "--control-port", "0") if command == "up" else ()
    with terminal(command, *ports, "--nodes", "1", "--threads", "1", starts=True) as shown:
        shown.until_shown("with smollm2-135m" if command != "up" else "loading")
        shown.type(CTRL_C)
        assert shown.wait() == (0 if command == "up" else 130)


@pytest.mark.slow
@pytest.mark.real
def test_chat_starts_a_cluster_and_ends_it(tmp_path: Path) -> None:
    with terminal("chat", "--nodes", "1", "--threads", "1", "--temperature", "0", "--max-tokens", "12", starts=True) as chat:
        chat.until_shown("\n>")
        chat.type("What is the capital of France, and what is it famous for?" + ENTER)
        chat.until_shown("Paris")
        chat.until_shown("tokens/s")
        chat.type("/bye" + ENTER)
        assert chat.wait() == 0


@pytest.mark.slow
def test_join_asks_for_the_code_at_a_terminal(tmp_path: Path) -> None:
    heads, nodes = tmp_path / "head", tmp_path / "node"
    port = str(free_port())
    places = ("--port", str(free_port()), "--control-port", port, "--discovery", "none")
    (heads / "models").mkdir(parents=True)
    (heads / "models" / MODEL).symlink_to(_model())
    head = Process(tmp_path / "head.log", "serve", "--secure", "--min-nodes", "2", *places, SHOAL_CACHE=str(heads))
    try:
        head.until_said("pairing code")
        code = re.findall(r"pairing code (\S+),", head.said)[-1]
        with terminal("join", f"127.0.0.1:{port}", "--name", "asked", "--threads", "1", starts=True, SHOAL_CACHE=str(nodes)) as shown:
            shown.until_shown("pairing code: ")
            shown.type("what?" + ENTER)
            shown.until_shown("that is not a pairing code")
            shown.until_shown("pairing code: ")
            shown.type(("1" if code[0] == "0" else "0") + code[1:] + ENTER)  # the first character names the code
            shown.until_shown("the head has no such pairing code")
            shown.until_shown("pairing code: ")
            shown.type(code.lower() + ENTER)
            shown.until_shown(f"joined 127.0.0.1:{port} as asked")
            shown.type(CTRL_C)
            assert shown.wait() == 0
        with terminal("join", f"127.0.0.1:{port}", "--threads", "1", starts=True, SHOAL_CACHE=str(tmp_path / "other")) as shown:
            shown.until_shown("pairing code: ")
            shown.type(CTRL_C)
            assert shown.wait() == 130
        done = piped("", "join", f"127.0.0.1:{port}", SHOAL_CACHE=str(tmp_path / "other"))
        assert (done.returncode, "--code" in done.stderr, done.stderr.count("\n")) == (1, True, 1), done.stderr
    finally:
        head.end()


def _model() -> Path:
    from shoal.folders import cache_dir

    return cache_dir() / "models" / MODEL
