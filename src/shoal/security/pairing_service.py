"""Pairing over TCP: the head's listener and the node's call. The listener's answers leave at fixed times (`pairing_pace`)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from shoal.address import join_host_port, listening_socket, of_socket
from shoal.errors import ClusterError, PairingRefused, ProtocolError, RemoteProtocolError, VersionMismatch
from shoal.security.authority import Authority
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials
from shoal.security.pairing import HeadExchange, NodeExchange
from shoal.security.pairing_code import PairingCode
from shoal.security.pairing_desk import PairingDesk
from shoal.security.pairing_messages import HEADER_SIZE, LARGEST, pack_refusal, payload_size
from shoal.security.pairing_pace import left
from shoal.security.pairing_tally import neighbourhood
from shoal.security.refusal import Refusal, refused

log = structlog.get_logger()

CONVERSATIONS = 8  # at once
FROM_ONE_PLACE = 4  # of those, from one place
_LINGERING = 16  # concurrent refusals while the head is busy; further connections are closed at once
_LINGER = 1.0  # seconds that a refused node has to read the reason


@dataclasses.dataclass(frozen=True)
class Paired:
    """A machine has proved that it knows the code, and a certificate was issued."""

    name: str
    peer: str
    role: Role = Role.NODE


@dataclasses.dataclass(frozen=True)
class TurnedAway:
    """`reason` as in PairingRefused, or `broken` for a conversation that broke off or was invalid."""

    peer: str
    reason: str


PairingEvent = Paired | TurnedAway


async def _read(reader: asyncio.StreamReader) -> bytes:
    """One frame. Raises RemoteProtocolError, EOFError, OSError."""
    header = await reader.readexactly(HEADER_SIZE)
    return header + await reader.readexactly(payload_size(header))


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ends a conversation so that the last message still arrives: closing with unread bytes would reset the connection."""
    with contextlib.suppress(OSError):  # TimeoutError is one
        async with asyncio.timeout(_LINGER):
            await writer.drain()
            writer.write_eof()
            left = 4 * LARGEST
            while left > 0 and (data := await reader.read(LARGEST)):
                left -= len(data)
    writer.transport.abort()


class PairingListener:
    """Created by `serve_pairing`."""

    def __init__(
        self,
        desk: PairingDesk,
        authority: Authority,
        on_event: Callable[[PairingEvent], None],
        patience: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        heads: bool,
    ) -> None:
        self._desk = desk
        self._authority = authority
        self._on_event = on_event
        self._patience = patience
        self._clock = clock
        self._sleep = sleep
        self._heads = heads
        self._conversations: set[asyncio.Task[None]] = set()
        self._places: Counter[str] = Counter()  # of the open conversations
        self._lingering: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1]) if self._server is not None else 0

    async def start(self, host: str, port: int) -> None:
        """Raises ConfigError if the address cannot be used."""
        self._server = await asyncio.start_server(self._accepted, sock=await asyncio.to_thread(listening_socket, host, port))

    async def close(self) -> None:
        """Stops listening and ends the open conversations."""
        if self._server is not None:
            self._server.close()
        tasks = self._conversations | self._lingering
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address: tuple[Any, ...] | None = writer.get_extra_info("peername")  # None if the node is already gone
        peer = of_socket(address) if address else "unknown"
        place = neighbourhood(peer)
        if len(self._conversations) < CONVERSATIONS and self._places[place] < FROM_ONE_PLACE:
            self._places[place] += 1
            self._hold(self._conversations, self._converse(peer, reader, writer), lambda: self._left(place))
        else:
            self._turn_away(peer, refused(Refusal.BUSY), writer)
            if len(self._lingering) < _LINGERING:
                self._hold(self._lingering, _hang_up(reader, writer))
            else:
                writer.transport.abort()

    def _left(self, place: str) -> None:
        self._places[place] -= 1
        self._places += Counter()  # drops places with a count of 0

    def _hold(self, tasks: set[asyncio.Task[None]], work: Any, then: Callable[[], None] = lambda: None) -> None:
        def over(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            then()
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("a pairing conversation failed", exc_info=error)

        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(over)

    async def _converse(self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        exchange = HeadExchange(self._desk, self._authority, peer, heads=self._heads)
        try:
            try:
                await self._pair(exchange, peer, reader, writer)
            except PairingRefused as error:
                self._turn_away(peer, error, writer)
            except (ProtocolError, EOFError, OSError) as error:
                # A node that finds the head's proof wrong hangs up: it had a wrong code, or it guessed.
                reason = Refusal.WRONG_CODE.name.lower() if exchange.challenged else "broken"
                self._note(peer, reason, str(error) or type(error).__name__)
            finally:
                exchange.close(self._clock())
            await _hang_up(reader, writer)
        finally:
            writer.transport.abort()

    async def _pair(self, exchange: HeadExchange, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._send(await self._answer(reader, lambda hello: exchange.challenge(hello, self._clock())), writer)
        grant = await self._answer(reader, lambda request: exchange.grant(request, self._clock(), dt.datetime.now(dt.UTC)))
        log.info("a machine has paired", peer=peer, name=exchange.name, role=exchange.role.value)
        self._on_event(Paired(exchange.name, peer, exchange.role))
        await self._send(grant, writer)

    async def _answer(self, reader: asyncio.StreamReader, compute: Callable[[bytes], bytes]) -> bytes:
        """Returns, or raises, the result of `compute` for the next message, but not before its time."""
        async with asyncio.timeout(self._patience):
            message = await _read(reader)
        came = self._clock()
        try:
            return compute(message)
        finally:
            await self._sleep(left(came, self._clock()))

    async def _send(self, answer: bytes, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(self._patience):
            writer.write(answer)
            await writer.drain()

    def _turn_away(self, peer: str, error: PairingRefused, writer: asyncio.StreamWriter) -> None:
        self._note(peer, error.reason, "")
        writer.write(pack_refusal(error))

    def _note(self, peer: str, reason: str, detail: str) -> None:
        log.warning("a pairing was refused", peer=peer, reason=reason, detail=detail)
        self._on_event(TurnedAway(peer, reason))


async def serve_pairing(
    host: str,
    port: int,
    desk: PairingDesk,
    authority: Authority,
    on_event: Callable[[PairingEvent], None],
    *,
    patience: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    heads: bool = False,
) -> PairingListener:
    """Admits nodes that know the desk's code. Each message is awaited for `patience` seconds.

    clock: the desk's, in seconds; sleep: waits on that clock before an answer leaves. heads: whether a machine may become a head, too.
    Port 0 takes a free one. Raises
    ConfigError if the address cannot be used.
    """
    listener = PairingListener(desk, authority, on_event, patience, clock, sleep, heads)
    await listener.start(host, port)
    return listener


async def pair(host: str, port: int, code: PairingCode, name: str, timeout: float = 20.0, role: Role = Role.NODE) -> Credentials:
    """Asks the head at `host:port` for this machine's credentials; `timeout` in seconds for all of it. role: what it wants to be.

    Raises PairingRefused (wrong, used or expired code, too many tries), ConfigError (a name that cannot stand in a certificate,
    clocks that differ), RemoteProtocolError (no pairing port), ClusterError (nobody answers, or the conversation broke off).
    """
    exchange = NodeExchange(code, name, role=role)
    where = join_host_port(host, port)
    try:
        async with asyncio.timeout(timeout):
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except OSError as error:
                hint = "is the head running there, and the port open?"
                raise ClusterError(f"the pairing port at {where} cannot be reached ({error.strerror or error}); {hint}") from error
            try:
                return await _call(exchange, where, reader, writer)
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise ClusterError(f"{where} did not answer within {timeout:g} s; is that the head's pairing port, and is it open?") from None


async def _call(exchange: NodeExchange, where: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Credentials:
    answered = False
    try:
        writer.write(exchange.hello())
        challenge = await _read(reader)
        answered = True
        writer.write(exchange.request(challenge))
        return exchange.credentials(await _read(reader), dt.datetime.now(dt.UTC))
    except VersionMismatch:
        raise
    except RemoteProtocolError as error:
        raise RemoteProtocolError(f"{where} is not a pairing port of shoal ({error}); check the address") from error
    except (EOFError, ConnectionError) as error:
        if answered:
            raise ClusterError(f"{where} ended the pairing; read the current code from the head and try again") from error
        raise RemoteProtocolError(
            f"{where} hung up: it is no pairing port of shoal, or too busy; check the address and try again"
        ) from error
