"""`shoal join` without an address finds `shoal serve`: real processes, multicast on this machine, a real Redis."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Process, cluster
from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.real, pytest.mark.slow]


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[RedisServer]:
    server = RedisServer(folder)
    try:
        yield server
    finally:
        server.stop()


def meet(folder: Path, discovery: str) -> None:
    name = f"test-{secrets.token_hex(4)}"  # others may announce clusters here
    with cluster(folder) as made:
        flags = ("--port", str(made.port), "--control-port", str(made.control_port), "--cluster", name, "--discovery", discovery)
        made.start("serve", *flags)
        node = made.start("join", "--cluster", name, "--discovery", discovery, "--threads", "1", "--memory", "1GiB", "--name", "finder")
        made.until_ready()
        assert f"found cluster {name} at 127.0.0.1:{made.control_port}" in node.said
        made.http.timeout = 60
        assert made.texts("Two and two are", 4)


def test_by_multicast(tmp_path: Path, smollm2: Path):
    meet(tmp_path, "mdns")


def test_by_redis(tmp_path: Path, smollm2: Path):
    with redis(tmp_path) as server:
        meet(tmp_path, server.url)


def test_where_no_cluster_is_announced_the_user_is_told_what_to_do(tmp_path: Path):
    with redis(tmp_path) as server:
        process = Process(tmp_path / "join.log", "join", "--discovery", server.url, "--threads", "1")
        assert process.wait() != 0
        assert "shoal serve" in process.said and "address" in process.said, process.said
