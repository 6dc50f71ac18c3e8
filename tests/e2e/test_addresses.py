"""Clusters at IPv6 addresses and at every address: what is printed to be pasted works when it is pasted."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import ifaddr
import pytest

from shoal.address import is_link_local
from shoal.discovery.addresses import of_this_machine
from tests.support import forks
from tests.support.cluster import Process, cluster, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

OWN = [i.ip for i in of_this_machine()]
AWAY = [ip for ip in OWN if not ip.is_loopback and not ip.is_link_local]
needs_ipv6 = pytest.mark.skipif(not any(str(ip) == "::1" for ip in OWN), reason="this machine has no IPv6")
LITTLE = ("--threads", "1", "--memory", "600MiB")


def printed(head: Process, pattern: str) -> list[str]:
    """The arguments of a command that the head shows, as a shell would split them."""
    match = until(lambda: re.search(pattern, head.said), head.describe)
    return shlex.split(match[1])[1:]


def asked(url: str) -> None:
    done = forks.run(("run", "Tell me about Paris.", "--url", url, "--max-tokens", "8"), os.environ)
    assert done.returncode == 0 and "Paris" in done.stdout, f"{url}: {done.stdout} {done.stderr}"


@needs_ipv6
def test_a_cluster_at_an_ipv6_address(tmp_path: Path, smollm2: Path) -> None:
    with cluster(tmp_path) as made:
        made.url = f"http://[::1]:{made.port}"
        made.http.base_url = made.url
        head = made.up("--host", "::1", "--api-host", "::1", "--nodes", "2", "--memory", "600MiB", "--model", str(smollm2))
        made.until_ready()
        (url,) = re.findall(r"API on (\S+)/v1", head.said)
        assert url == made.url
        asked(url)
        join = printed(head, r"more nodes: (shoal join \S+)")
        assert join == ["join", f"[::1]:{made.control_port}"]
        pasted = made.start(*join, *LITTLE, "--name", "pasted")
        pasted.until_said(" as pasted")
        listed = nodes_at(join[1])
        assert "pasted" in listed and re.search(r"\[::1\]:\d+", listed)
        assert "Paris" in made.texts("The capital of France is")[0]
        # Whoever asks on this machine need not know which address the head has.
        assert "pasted" in nodes_at(f"127.0.0.1:{made.control_port}")


def link_local() -> list[str]:
    """This machine's addresses that mean something on one cable only, with the cable's name."""
    found = [(ip.ip, adapter.nice_name) for adapter in ifaddr.get_adapters() for ip in adapter.ips if isinstance(ip.ip, tuple)]
    return [f"{ip[0]}%{name}" for ip, name in found if is_link_local(ip[0])]


@pytest.mark.skipif(not link_local(), reason="this machine has no link-local address")
def test_a_cluster_at_a_link_local_address(tmp_path: Path, smollm2: Path) -> None:
    host = link_local()[0]
    with cluster(tmp_path) as made:
        head = made.up("--host", host, "--nodes", "2", "--memory", "600MiB", "--model", str(smollm2), SHOAL_CACHE=str(tmp_path / "cache"))
        made.until_ready()
        until(lambda: f"more nodes: shoal join [{host}]:{made.control_port}\n" in head.said, head.describe)
        assert "Paris" in made.texts("The capital of France is")[0]


def nodes_at(head: str) -> str:
    listed = forks.run(("nodes", "--head", head), {**os.environ, "COLUMNS": "250"})
    assert listed.returncode == 0, listed.stderr
    return listed.stdout


@needs_ipv6
@pytest.mark.skipif(not AWAY, reason="this machine has no address that others reach")
@pytest.mark.parametrize(("wildcard", "names"), [("0.0.0.0", "ab"), ("::", "a")])
def test_a_head_at_every_address_shows_one_that_others_reach(tmp_path: Path, smollm2: Path, wildcard: str, names: str) -> None:
    environment = {"SHOAL_CACHE": str(tmp_path / "head")}
    with cluster(tmp_path) as made:
        ports = ("--port", str(made.port), "--control-port", str(made.control_port))
        flags = (
            "--host",
            wildcard,
            "--api-host",
            wildcard,
            "--open-api",
            "--min-nodes",
            str(len(names)),
            "--spread",
            "--discovery",
            "none",
        )
        head = made.start("serve", *ports, *flags, "--model", str(smollm2), **environment)
        for count, name in enumerate(names):  # each a machine of its own, with nothing but the line that is shown
            until(lambda count=count: head.said.count("good for one machine") > count, head.describe)
            line = re.findall(r"good for one machine: (shoal join \S+ --code \S+)", head.said)[-1]
            join = shlex.split(line)[1:]
            assert join[1].rpartition(":")[0].strip("[]") in {str(ip) for ip in AWAY}, line
            made.start(*join, *LITTLE, "--name", name, SHOAL_CACHE=str(tmp_path / name))
        made.until_ready()
        (url,) = re.findall(r"API on (\S+)/v1", head.said)
        assert wildcard not in url
        asked(url)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("join", "::1:39115"), "write [::1]:39115"),
        (("join", "0.0.0.0:58987"), "write one of them"),
        (("nodes", "--head", "::1:7420"), "write [::1]:7420"),
        (("up", "--host", "192.168.1.20:7420"), "--host: '192.168.1.20:7420' is not a host"),
        (("serve", "--api-host", "[::1]:8000"), "--api-host: '[::1]:8000' is not a host"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_no_address_is_one_line_that_says_what_to_write(arguments: tuple[str, ...], advice: str) -> None:
    done = forks.run(arguments, os.environ)
    assert done.returncode == 2
    assert advice in done.stderr and done.stderr.strip().count("\n") == 0, done.stderr
