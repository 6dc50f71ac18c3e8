"""`shoal top` and `shoal nodes --watch` at a terminal, with a real cluster whose nodes come and go while somebody watches."""

from __future__ import annotations

import fcntl
import json
import signal
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.cli.operator_client import Sight
from tests.support import gguf_families, tiny_families
from tests.support.cluster import Cluster, free_port, served, until
from tests.support.terminal import CTRL_C, Terminal, piped, terminal

pytestmark = [pytest.mark.slow]

ALTERNATE, MAIN, SHOW_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("top")
    built = tiny_families.model("olmo2", vocab_size=512, num_hidden_layers=6)
    file = gguf_families.write(built, folder / "tiny.gguf", tokenizer=gguf_families.vocabulary(512))
    with served(folder, 2, "--model", str(file), "--precision", "fp32", "--heartbeat", "0.2") as made:
        made.complete([1, 2], 8)
        yield made


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Cluster]:
    """Two models on the same nodes."""
    files: list[str] = []
    for name, layers in (("small", 4), ("large", 6)):
        built = tiny_families.model("olmo2", vocab_size=512, num_hidden_layers=layers)
        files += ["--model", str(gguf_families.write(built, tmp_path / f"{name}.gguf", tokenizer=gguf_families.vocabulary(512)))]
    with served(tmp_path, 2, *files, "--precision", "fp32", "--heartbeat", "0.2") as made:
        yield made


def resize(shown: Terminal, columns: int, rows: int) -> None:
    fcntl.ioctl(shown._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    shown.popen.send_signal(signal.SIGWINCH)


def left_sane(shown: Terminal, before: list[object]) -> None:
    assert shown.raw.count(ALTERNATE) == 1
    assert shown.raw.rstrip().endswith((MAIN, SHOW_CURSOR)) or MAIN in shown.raw[-60:]
    assert SHOW_CURSOR in shown.raw[-60:]
    assert shown.settings() == before


def test_a_node_is_killed_while_somebody_watches(made: Cluster) -> None:
    with terminal("top", "--url", made.url, "--interval", "0.2") as shown:
        before = shown.settings()
        shown.until_shown("▸ machines")
        shown.until_shown("n1")
        shown.until_shown("q quit")
        assert shown.settings()[3] & (termios.ECHO | termios.ICANON) == 0
        made.nodes[1].popen.kill()
        shown.until_shown("n1 left")
        made.join("--name", "n2")
        shown.until_shown("n2 joined")
        resize(shown, 120, 50)
        shown.until_shown("planned")
        shown.type("\t")
        shown.until_shown("▸ stages")
        shown.type("/n2\r")
        shown.until_shown("filter: n2")
        shown.type("q")
        assert shown.wait() == 0
        left_sane(shown, before)
    made.until_ready()


@pytest.mark.parametrize("end", [CTRL_C, ""])
def test_it_leaves_the_terminal_as_it_was(made: Cluster, end: str) -> None:
    with terminal("top", "--url", made.url, NO_COLOR="1") as shown:
        before = shown.settings()
        shown.until_shown("q quit")
        if end:
            shown.type(end)
        else:
            shown.popen.send_signal(signal.SIGTERM)
        assert shown.wait() == 0
        left_sane(shown, before)
        assert not [code for code in ("\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m") if code in shown.raw]


def test_a_head_that_falls_silent_is_waited_for(made: Cluster) -> None:
    """What was seen stays, with the reason why there is nothing newer."""
    with terminal("top", "--url", made.url, "--interval", "0.2") as shown:
        shown.until_shown("q quit")
        made.head.signal(signal.SIGSTOP)
        try:
            shown.until_shown("does not answer")
            shown.until_shown("▸ machines")
        finally:
            made.head.signal(signal.SIGCONT)
        until(lambda: "does not answer" not in shown.raw.rpartition("shoal ")[2], lambda: shown.screen[-3000:])
        shown.type("q")
        assert shown.wait() == 0


def test_a_server_that_is_not_there_is_an_error() -> None:
    with terminal("top", "--url", f"http://127.0.0.1:{free_port()}") as shown:
        assert shown.wait() == 1
        assert "does not answer" in shown.screen and ALTERNATE not in shown.raw
    done = piped("", "top", "--url", "ftp://x")
    assert done.returncode == 2 and "not the address of an API" in done.stderr


def test_it_is_printed_once_where_nobody_watches(made: Cluster) -> None:
    done = piped("", "top", "--url", made.url)
    assert done.returncode == 0 and "\x1b" not in done.stdout
    assert "serving" in done.stdout and "back to the head" in done.stdout and "joined from" in done.stdout
    seen = json.loads(piped("", "top", "--url", made.url, "--json").stdout)
    assert seen.keys() == set(Sight.__struct_fields__)
    nodes = {machine["name"] for machine in seen["cluster"]["machines"]}
    assert nodes == set(made.layers())
    assert all(name in done.stdout for name in nodes)


def test_one_of_several_pipelines_is_shown_until_p_is_pressed(two: Cluster) -> None:
    with terminal("top", "--url", two.url, "--interval", "30", columns=120) as shown:  # keys do not wait for the next look
        shown.until_shown("shoal small/1")
        shown.until_shown("▸small/1 serving")
        shown.until_shown("p P pipeline")
        shown.type("p")
        shown.until_shown("shoal large/1")
        shown.until_shown("▸large/1 serving")
        shown.type("pP")
        shown.until_shown("▸large/1 serving")
        two.http.post("/operator/models", json={"unload": "large"}).raise_for_status()
        shown.type("P")
        shown.until_shown("shoal small  serving")  # there is nothing to choose any more
        shown.type("q")
        assert shown.wait() == 0


def test_all_pipelines_are_printed_where_nobody_watches(two: Cluster) -> None:
    told = piped("", "top", "--url", two.url).stdout.splitlines()
    assert told[0] == "pipelines"
    assert [line.split()[1] for line in told if line.startswith("shoal ")] == ["small/1", "large/1"]
    assert [line.split()[:2] for line in told[2:4]] == [["small/1", "serving"], ["large/1", "serving"]]
    cluster = json.loads(piped("", "top", "--url", two.url, "--json").stdout)["cluster"]
    assert cluster["pipeline"] == "small/1" and [one["name"] for one in cluster["pipelines"]] == ["small/1", "large/1"]


def test_nodes_are_watched_until_ctrl_c(made: Cluster) -> None:
    address = f"127.0.0.1:{made.control_port}"
    with terminal("nodes", "--head", address, "--watch", columns=120) as shown:
        shown.until_shown("serving")
        shown.until_shown("heard")
        node = made.join("--name", "n9")
        shown.until_shown("n9")
        node.popen.kill()
        shown.until_shown("n9 left")
        before = shown.settings()
        shown.type(CTRL_C)
        assert shown.wait() == 0
        assert shown.settings() == before and SHOW_CURSOR in shown.raw[-60:]
    done = piped("", "nodes", "--head", address, "--watch")
    assert done.returncode == 2 and "needs a terminal" in done.stderr
    assert piped("", "nodes", "--head", address, "--watch", "--json").returncode == 2
