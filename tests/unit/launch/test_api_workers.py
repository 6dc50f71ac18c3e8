"""The processes that serve the API, before there are any."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from shoal.config import ApiSettings
from shoal.errors import ConfigError
from shoal.gateway.server import listening
from shoal.launch.api_workers import ApiWorkers, GatewayPort
from shoal.text.tokenizer_parts import TokenizerFiles
from tests.support.several import Called, served


def workers(address: socket.socket, folder: Path, port: int) -> ApiWorkers:
    engines: Any = served(Called("alpha"), aliases={})
    settings, gateways = ApiSettings(data=str(folder)), GatewayPort("127.0.0.1", port, None)
    return ApiWorkers(engines, lambda _: TokenizerFiles(folder), settings, address, "text", False, gateways=gateways)


def test_a_busy_port_for_gateways_is_told_in_one_line(tmp_path: Path) -> None:
    async def go() -> None:
        with listening("127.0.0.1", 0) as address, listening("127.0.0.1", 0) as other:
            port = other.getsockname()[1]
            with pytest.raises(ConfigError, match=f"--gateway-port.*{port}.* in use"):
                await workers(address, tmp_path, port).serve()

    asyncio.run(go())


def test_what_fails_beside_the_processes_ends_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        with listening("127.0.0.1", 0) as address:
            made = workers(address, tmp_path, 0)

            async def keep() -> None:
                while not made._gone:  # noqa: ASYNC110 - of its processes
                    await asyncio.sleep(0.01)
                raise ZeroDivisionError

            assert made._home is not None
            monkeypatch.setattr(made._home.keyring, "keep", keep)
            async with asyncio.timeout(60):
                with pytest.raises(ZeroDivisionError):
                    await made.serve()
            assert not made._gone

    asyncio.run(go())
