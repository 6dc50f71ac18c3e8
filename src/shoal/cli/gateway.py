"""`gateway`: serves the API of a head on another machine. It imports no computing code."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Sequence
from random import Random
from typing import Any

import structlog

from shoal.address import Address, http_url, parse_address
from shoal.cli.finishing import finished
from shoal.cli.loop import run
from shoal.cli.open_api import check_open
from shoal.cli.relocation import move_in
from shoal.cli.show import line
from shoal.cli.waiting import stop_signal, until
from shoal.config import ApiSettings, GatewaySettings
from shoal.discovery.addresses import reached_at
from shoal.errors import ClusterError, RemoteProtocolError, ShoalError, ShuttingDown
from shoal.folders import cache_dir
from shoal.gateway.app import Home, create_app
from shoal.gateway.server import ApiServer, listening
from shoal.gateway.standing_by import StandbyServer
from shoal.gateway.workers.client import RemoteEngines
from shoal.launch.head_search import HeadSearch, is_final
from shoal.launch.keys import kept_credentials, kept_path
from shoal.retry import Backoff
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials
from shoal.security.pairing_code import PairingCode
from shoal.security.private_file import check_writable

log = structlog.get_logger()

PORT = 7420
"""A head's control port, if none is said."""
_AT_ONCE = 1.0
"""Seconds that its first head may take before clients are told that there is none."""
_PREPARING = 10.0
"""Seconds that a head may take to give what answers need, before the gateway serves."""
_SETTLED = 10.0
"""Seconds after which a conversation that ends counts as having been a healthy one."""


def head_address(text: str) -> Address:
    """'192.168.1.20' or 'head.local:7420'. Raises ConfigError."""
    bare = text.strip()
    has_port = ":" in bare.rpartition("]")[2] if bare.startswith("[") else ":" in bare
    return parse_address(bare if has_port else f"{bare}:{PORT}")


async def gateway_credentials(settings: GatewaySettings, addresses: Sequence[Address]) -> Credentials | None:
    """By the code, or from an earlier pairing; None: there was none. All addresses are of one cluster.

    Raises PairingRefused, ConfigError, ClusterError, RemoteProtocolError.
    """
    paths = [kept_path(str(address), Role.GATEWAY) for address in addresses]
    if not settings.code:
        kept = next((path for path in paths if path.exists()), None)
        return None if kept is None else kept_credentials(kept, Role.GATEWAY)
    for path in paths:
        check_writable(path)  # the code works only once
    credentials = await _paired(settings, addresses)
    for path in paths:
        credentials.save(path)
    return credentials


async def _paired(settings: GatewaySettings, addresses: Sequence[Address]) -> Credentials:
    """With the first head that answers. Raises as gateway_credentials."""
    from shoal.security.pairing_service import pair  # its curve takes 20 ms to set up

    code, name = PairingCode(settings.code), gateway_name(settings)
    failure: ShoalError | None = None
    for host, port in addresses:
        try:
            return await pair(host, settings.pairing_port or port + 1, code, name, role=Role.GATEWAY)
        except (ClusterError, RemoteProtocolError) as error:
            failure = failure or error
    assert failure is not None
    raise failure


def gateway_name(settings: GatewaySettings) -> str:
    return settings.name or socket.gethostname()


class _Gateway:
    """Serves one head after another on one socket."""

    def __init__(self, settings: GatewaySettings, heads: HeadSearch, address: socket.socket, stop: asyncio.Event) -> None:
        self._settings, self._heads, self._socket, self._stop = settings, heads, address, stop
        self._why = ""
        self._rng = Random()
        self._engines: RemoteEngines | None = None

    async def run(self) -> None:
        """Returns when told to stop. Raises ShoalError if the first head does not take it for good."""
        first, backoff, now = True, Backoff(0.2, 5.0), asyncio.get_running_loop().time
        while await until(self._stop, self._look(first, backoff)):
            assert self._engines is not None
            engines, self._engines = self._engines, None
            chosen, began = self._settings.serving(engines.settings), now()
            if first:
                check_open(chosen, engines.home is not None and engines.home.keyring.usable, "on the head ")
                line(f"API on {http_url(reached_at(chosen.api_host), self._socket.getsockname()[1])}/v1")
            first = False
            line(f"serving for the head at {self._heads.address}")
            if await self._serve(engines, chosen):
                return
            if now() - began > _SETTLED:
                backoff.tries = 0
            line(f"{self._why}; this gateway looks for it again")

    async def _look(self, first: bool, backoff: Backoff) -> None:
        """Returns with the engines of a head; serves the reason why there is none meanwhile. Raises ShoalError if the first one does not
        take it, for good."""
        finding = asyncio.ensure_future(self._find(first, backoff))
        try:
            await asyncio.wait({finding}, timeout=_AT_ONCE if first else 0)
            if not finding.done():
                await self._tell_why(finding)
            finding.result()
        finally:
            finding.cancel()
            await asyncio.gather(finding, return_exceptions=True)

    async def _tell_why(self, finding: asyncio.Future[None]) -> None:
        """Serves the reason why there is no head, until it is found or cannot be."""
        if not self._why:
            self._why = f"the head at {self._heads.address} has not answered yet"
            line(f"{self._why}; this gateway waits for it")
        away = StandbyServer(self._socket.dup(), lambda: f"this gateway has no head: {self._why}")
        serving = asyncio.ensure_future(away.serve())
        try:
            await asyncio.wait({finding, serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            away.stop()
            await serving

    async def _find(self, first: bool, backoff: Backoff) -> None:
        """Raises ShoalError."""
        if first and await self._found(first):
            return
        while True:
            await asyncio.sleep(backoff.next(self._rng))
            if await self._found(first):
                return

    async def _found(self, first: bool) -> bool:
        """Whether a head has taken it. Raises ShoalError if the first one does not, for good."""
        try:
            self._engines = await self._heads.connect()
        except ShoalError as error:
            if first and is_final(error):
                raise
            if self._why != str(error):
                self._why = str(error)
                line(f"{error}; this gateway goes on looking")
        return self._engines is not None

    async def _serve(self, engines: RemoteEngines, chosen: ApiSettings) -> bool:
        """Serves while the head is there. Returns whether it was told to stop."""
        hearing = asyncio.ensure_future(engines.run())
        try:
            await _prepared(engines, hearing)
            api = self._api(engines, chosen)
            works = api.serve(), engines.finish(api.finish), self._stop.wait()
            serving, finishing, stopping = [asyncio.ensure_future(work) for work in works]
            await asyncio.wait({hearing, serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopped := self._stop.is_set():
                await _first({hearing}, finished(api, self._stop, chosen.grace))
            if hearing.done():  # as if the process that has the clients' connections were killed: those that named theirs come back
                self._why = f"the head at {self._heads.address} is gone"
                api.drop()
            else:
                engines.refuse(ShuttingDown())
                await asyncio.sleep(0)
                api.stop()
            for task in (finishing, stopping):
                task.cancel()
            failed, _ = await asyncio.gather(finishing, stopping, return_exceptions=True)
            await serving
            if isinstance(failed, Exception):
                raise failed
            return stopped
        finally:
            await engines.close()
            (outcome,) = await asyncio.gather(hearing, return_exceptions=True)
            if isinstance(outcome, Exception):
                log.error("the conversation with the head broke", reason=str(outcome))

    def _api(self, engines: RemoteEngines, chosen: ApiSettings) -> ApiServer:
        home = engines.home
        if home is None:
            raise RemoteProtocolError("the head took this gateway for one of its own processes")
        app = create_app(engines, chosen, home.keyring, engines.limiter, engines.operator, Home(home.responses, home.api))
        return ApiServer(app, self._socket.dup(), chosen)


async def _first(tasks: set[asyncio.Future[None]], work: Coroutine[Any, Any, None]) -> None:
    """Does the work unless one of the tasks is done before."""
    working = asyncio.ensure_future(work)
    await asyncio.wait({*tasks, working}, return_when=asyncio.FIRST_COMPLETED)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def _prepared(engines: RemoteEngines, hearing: asyncio.Future[None]) -> None:
    """Returns when the default model's tokenizer is open, cannot be, or takes long, as requests for it then do; or the head is gone."""
    preparing = asyncio.ensure_future(engines.prepare())
    await asyncio.wait({preparing, hearing}, timeout=_PREPARING, return_when=asyncio.FIRST_COMPLETED)
    preparing.cancel()
    (outcome,) = await asyncio.gather(preparing, return_exceptions=True)
    if isinstance(outcome, Exception):
        log.error("the tokenizer of the default model cannot be opened; requests for it are refused", reason=str(outcome))


async def _gateway(settings: GatewaySettings, texts: Sequence[str]) -> None:
    addresses = [head_address(text) for text in dict.fromkeys(texts)]
    stop = stop_signal()
    with listening(settings.api_host, settings.port) as address:
        credentials = await gateway_credentials(settings, addresses)
        heads = HeadSearch(addresses, credentials, gateway_name(settings), cache_dir() / "tokenizers")
        await _Gateway(settings, heads, address, stop).run()


def gateway(settings: GatewaySettings, heads: Sequence[str]) -> None:
    move_in()
    run(_gateway(settings, heads))
