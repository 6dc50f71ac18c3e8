"""A node's end of the conversation, and the requests of the command line to the head."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, NamedTuple, TypeVar

import grpc
import grpc.aio

from shoal.address import grpc_target, parse_address
from shoal.control.channel import ATTEND, DESCRIBE, DISMISS, OPTIONS
from shoal.control.messages import ClusterDescription, DescribeRequest, DismissAnswer, DismissRequest, HeadMessage, NodeMessage
from shoal.control.protobuf import decode_head_message, decoder, encode, encode_node_message
from shoal.errors import ClusterError, NotPaired
from shoal.security.credentials import Credentials

T = TypeVar("T")


class ControlClient:
    def __init__(self, address: str, credentials: Credentials | None = None) -> None:
        self.address, self._protected = address, credentials is not None
        self._channel = _channel(address, credentials)
        self._outbox: asyncio.Queue[NodeMessage | None] = asyncio.Queue()

    def say(self, message: NodeMessage) -> None:
        self._outbox.put_nowait(message)

    async def _outgoing(self) -> AsyncIterator[NodeMessage]:
        while (message := await self._outbox.get()) is not None:
            yield message

    async def attend(self, timeout: float) -> AsyncGenerator[HeadMessage]:
        """What the head says, until it hangs up. Raises ClusterError if it cannot be reached or the connection breaks."""
        try:
            async with asyncio.timeout(timeout):
                await self.connected()
        except TimeoutError:
            raise ClusterError(
                f"no head answers at {self.address}; is `shoal serve` running there, and is the port open? "
                "A head that shows a pairing code wants it once: --code"
            ) from None
        call: Any = self._channel.stream_stream(ATTEND, request_serializer=encode_node_message, response_deserializer=decode_head_message)(
            self._outgoing()
        )
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise ClusterError(f"the head at {self.address} is gone ({error.details()})") from error

    async def connected(self) -> None:
        """Raises ClusterError as soon as one attempt has failed: the caller knows whether another makes sense."""
        state = self._channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                raise await self._unreachable()
            await self._channel.wait_for_state_change(state)
            state = self._channel.get_state(try_to_connect=True)

    async def _unreachable(self) -> ClusterError:
        """Finds out why, which gRPC does not report."""
        if (why := await refused(self.address)) is not None:
            return ClusterError(f"{self.address} cannot be reached: {why.why}; is `shoal serve` running there, and is the port open?")
        if not self._protected:
            return NotPaired(self.address)
        return ClusterError(
            f"what answers at {self.address} does not prove that it is the cluster that this machine has paired with; if it was made anew, "
            "pair again: --code CODE"
        )

    async def close(self) -> None:
        """Sends what is left, then hangs up."""
        self._outbox.put_nowait(None)
        await self._channel.close(grace=0.5)


async def locked(address: str, timeout: float = 5.0) -> bool:
    """Whether a head that accepts connections requires a certificate: it alone answers in TLS, and asks for one after that. Raises
    ConfigError."""
    host, port = parse_address(address)
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port, ssl=_anybodys())
    except OSError:  # TimeoutError and ssl.SSLError are some
        return False
    writer.transport.abort()
    return True


def _anybodys() -> ssl.SSLContext:
    """TLS with whoever answers, to whom nothing is said."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


class Unanswered(NamedTuple):
    """Nothing at an address accepts a connection."""

    why: str
    passing: bool
    """Whether a head that is starting, or whatever forwards to it, would answer the same way."""


async def refused(address: str, timeout: float = 5.0) -> Unanswered | None:
    """None if something at `host:port` accepts a connection and keeps it. Raises ConfigError."""
    host, port = parse_address(address)
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return Unanswered(f"nothing answers within {timeout:g} s", True)
    except ConnectionRefusedError:
        return Unanswered("nothing listens there (connection refused)", True)
    except ConnectionError:
        return _HUNG_UP
    except OSError as error:
        return Unanswered(error.strerror or str(error), False)
    try:
        return _HUNG_UP if await _hangs_up(reader) else None
    finally:
        writer.close()


_HUNG_UP = Unanswered("what listens there hangs up at once, as a forwarded port does with nothing behind it", True)
_KEPT = 0.25  # seconds after which an accepted connection counts as kept


async def _hangs_up(reader: asyncio.StreamReader) -> bool:
    """Whether the peer hangs up. A server speaks first, or waits for the other side to do so."""
    try:
        async with asyncio.timeout(_KEPT):
            return not await reader.read(1)
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def _channel(address: str, credentials: Credentials | None) -> Any:
    target = grpc_target(address)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=OPTIONS)
    return credentials.grpc_channel(target, OPTIONS)


async def describe(address: str, credentials: Credentials | None = None, timeout: float = 5.0) -> ClusterDescription:
    """Raises ClusterError if no head answers."""
    return await _ask(address, credentials, DESCRIBE, DescribeRequest(), decoder(ClusterDescription), timeout)


async def dismiss(address: str, name: str, drain: bool, credentials: Credentials | None = None, timeout: float = 5.0) -> DismissAnswer:
    """Sends a node home; with `drain`, its layers are moved off first. Raises ClusterError if no head answers."""
    return await _ask(address, credentials, DISMISS, DismissRequest(name=name, drain=drain), decoder(DismissAnswer), timeout)


async def _ask(address: str, credentials: Credentials | None, method: str, request: Any, parse: Callable[[bytes], T], timeout: float) -> T:
    async with _channel(address, credentials) as channel:
        open_call: Any = channel.unary_unary
        call = open_call(method, request_serializer=encode, response_deserializer=parse)
        try:
            return await call(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            if (why := await refused(address)) is not None:
                hint = "is `shoal serve` running there? --head HOST:PORT asks another one"
                raise ClusterError(f"no head answers at {address}: {why.why}; {hint}") from error
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                hint = "is it the head's control port? A protected head answers its own machine and those that have paired with it"
                raise ClusterError(f"the process that listens at {address} does not answer; {hint}") from error
            raise ClusterError(f"the head at {address} does not answer: {error.details()}") from error
