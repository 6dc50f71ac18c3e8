"""A witness over real sockets: who may ask it, and what strangers get."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx2 as httpx
import pytest

from shoal.control.client import ControlClient
from shoal.errors import ClusterError, ConfigError, LeaseUnreachable
from shoal.leadership.clock import elapsed
from shoal.leadership.ledger import WitnessLedger
from shoal.leadership.witness import WitnessLease
from shoal.leadership.witness_server import WitnessServer
from shoal.security.authority import Authority
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials

pytestmark = pytest.mark.real
NOW = dt.datetime.now(dt.UTC)
A = "10.0.0.1:7420"


def served(folder: Path, scenario: Callable[[WitnessServer], Awaitable[None]], credentials: Credentials | None = None) -> None:
    async def run() -> None:
        server = WitnessServer(WitnessLedger(folder / "leases.json", elapsed), credentials)
        await server.start("127.0.0.1", 0)
        try:
            async with asyncio.timeout(60):
                await scenario(server)
        finally:
            await server.stop()

    asyncio.run(run())


def lease(server: WitnessServer, credentials: Credentials | None = None, cluster: str = "reef") -> WitnessLease:
    return WitnessLease(f"127.0.0.1:{server.port}", cluster, 2.0, credentials)


async def asked(server: WitnessServer, method: str, data: bytes) -> bytes:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call: Any = channel.unary_unary(f"/shoal.Witness/{method}")
        return await call(data, timeout=10)


def test_a_head_of_the_cluster_is_served_and_nobody_else(tmp_path: Path):
    ours, theirs = Authority.create(NOW), Authority.create(NOW)

    async def scenario(server: WitnessServer) -> None:
        head = lease(server, ours.credentials(Role.HEAD, "head"))
        assert await head.holder() is None
        await head.close()
        node = lease(server, ours.credentials(Role.NODE, "node"))
        with pytest.raises(ConfigError, match="only a head of the cluster"):
            await node.acquire(A)
        await node.close()
        for stranger in (lease(server, theirs.credentials(Role.HEAD, "head")), lease(server)):
            with pytest.raises(LeaseUnreachable):
                await stranger.acquire(A)
            await stranger.close()

    served(tmp_path, scenario, ours.credentials(Role.WITNESS, "witness"))


def test_a_node_cannot_pose_as_the_witness(tmp_path: Path):
    ours = Authority.create(NOW)

    async def scenario(server: WitnessServer) -> None:
        head = lease(server, ours.credentials(Role.HEAD, "head"))
        with pytest.raises(LeaseUnreachable):
            await head.acquire(A)
        await head.close()

    served(tmp_path, scenario, ours.credentials(Role.NODE, "node"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff" * 100,
        b"{}",
        b"[" * 3000,
        b'{"cluster": "reef", "owner": "a", "address": "x", "floor": -1, "duration": 2}',
        b'{"cluster": "reef", "owner": "a", "address": "x", "floor": 0, "duration": 1e9}',
        b'{"cluster": "reef", "owner": "", "address": "x", "floor": 0, "duration": 2}',
        b'{"cluster": "' + b"x" * 129 + b'", "owner": "a", "address": "x", "floor": 0, "duration": 2}',
        b'{"cluster": "a\\nb", "owner": "a", "address": "x", "floor": 0, "duration": 2}',
    ],
)
def test_garbage_gets_an_error_and_changes_nothing(tmp_path: Path, data: bytes):
    async def scenario(server: WitnessServer) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asked(server, "Acquire", data)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "no request for a lease" in (refused.value.details() or "")
        head = lease(server)
        assert await head.holder() is None
        await head.close()

    served(tmp_path, scenario)


def test_a_request_that_is_too_large_is_not_read(tmp_path: Path):
    async def scenario(server: WitnessServer) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asked(server, "Acquire", b" " * 10_000)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    served(tmp_path, scenario)


def test_other_clients_are_refused_and_it_serves_on(tmp_path: Path):
    async def scenario(server: WitnessServer) -> None:
        async with httpx.AsyncClient(trust_env=False) as browser:
            with pytest.raises(httpx.HTTPError):
                await browser.get(f"http://127.0.0.1:{server.port}/")
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(bytes(range(256)) * 64)
        await reader.read()
        writer.close()
        node = ControlClient(f"127.0.0.1:{server.port}")  # `shoal join` at the wrong port
        with pytest.raises(ClusterError, match="gone"):
            async for _ in node.attend(10):
                pass
        await node.close()
        head = lease(server)
        assert await head.holder() is None
        await head.close()

    served(tmp_path, scenario)


def test_what_is_no_witness_is_told(tmp_path: Path):
    async def run() -> None:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        head = WitnessLease(f"127.0.0.1:{port}", "reef", 4.0)
        with pytest.raises(ConfigError, match="is no witness"):
            await head.acquire(A)
        await head.close()
        await server.stop(None)

    asyncio.run(run())


def test_a_disk_that_is_full_makes_no_grant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def scenario(server: WitnessServer) -> None:
        def full(path: Path, data: bytes) -> None:
            raise ConfigError(f"cannot write {path}: No space left on device")

        monkeypatch.setattr("shoal.leadership.ledger.write_private", full)
        head = lease(server)
        await asyncio.sleep(2.1)
        with pytest.raises(LeaseUnreachable, match="No space left"):
            await head.acquire(A)
        assert await head.holder() is None
        await head.close()

    served(tmp_path, scenario)
