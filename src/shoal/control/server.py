"""The head's end: one conversation per node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Protocol
from urllib.parse import unquote

import grpc
import grpc.aio
import structlog

from shoal.address import is_wildcard, join_host_port, listening_socket, parse_host
from shoal.control.channel import OPTIONS, SERVICE, role_at
from shoal.control.messages import (
    ClusterDescription,
    Copied,
    DescribeRequest,
    DismissAnswer,
    DismissRequest,
    Follow,
    HeadMessage,
    NodeMessage,
)
from shoal.control.protobuf import decode_node_message, decoder, encode, encode_head_message
from shoal.errors import ConfigError, RemoteProtocolError
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials

log = structlog.get_logger()


class NodeConnection:
    """What the head sends to one node, or one standby head. `host` is where its connection comes from."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._outbox: asyncio.Queue[HeadMessage | None] = asyncio.Queue()

    def say(self, message: HeadMessage) -> None:
        self._outbox.put_nowait(message)

    def end(self) -> None:
        """Sends what is left, then hangs up."""
        self._outbox.put_nowait(None)

    async def outgoing(self) -> AsyncIterator[HeadMessage]:
        while (message := await self._outbox.get()) is not None:
            yield message


class Attendant(Protocol):
    """Whoever listens to the nodes."""

    def heard(self, conversation: NodeConnection, message: NodeMessage) -> None: ...
    def hung_up(self, conversation: NodeConnection) -> None: ...
    def describe(self) -> ClusterDescription: ...
    def dismiss(self, request: DismissRequest) -> DismissAnswer: ...


def _host(peer: str) -> str:
    """'ipv4:10.0.0.7:5123' → '10.0.0.7'; 'ipv6:%5B::1%5D:5123' → '::1'; 'ipv6:%5Bfe80::1%25eth0%5D:5123' → 'fe80::1%eth0'."""
    kind, _, rest = unquote(peer).partition(":")
    return parse_host(rest.rsplit(":", 1)[0]) if kind in ("ipv4", "ipv6") else "127.0.0.1"


class ControlServer:
    def __init__(self, attendant: Attendant, credentials: Credentials | None = None) -> None:
        """With credentials: serves over TLS, to clients with a certificate of the same cluster."""
        self._attendant = attendant
        self._credentials = credentials
        self._server = grpc.aio.server(options=OPTIONS)
        self._conversations: set[NodeConnection] = set()
        handlers = {
            "Attend": grpc.stream_stream_rpc_method_handler(
                self._attend, request_deserializer=decode_node_message, response_serializer=encode_head_message
            ),
            "Describe": grpc.unary_unary_rpc_method_handler(
                self._describe, request_deserializer=decoder(DescribeRequest), response_serializer=encode
            ),
            "Dismiss": grpc.unary_unary_rpc_method_handler(
                self._dismiss, request_deserializer=decoder(DismissRequest), response_serializer=encode
            ),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Raises ConfigError if the address cannot be used."""
        if port:  # gRPC's own message does not say why
            listening_socket(host, port).close()
        try:
            self.port = self._listen(host, port)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {join_host_port(host, port)} for nodes; choose another --control-port") from error
        if not is_wildcard(host) and host not in ("127.0.0.1", "localhost"):
            with contextlib.suppress(RuntimeError):  # `shoal nodes` asks here; another head may already use it
                self._listen("127.0.0.1", self.port)
        await self._server.start()

    def _listen(self, host: str, port: int) -> int:
        """Raises RuntimeError."""
        address = join_host_port(host.replace("%", "%25"), port)
        if self._credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._credentials.grpc_server_credentials())

    def hand_to(self, attendant: Attendant) -> None:
        """Another one listens from now on; whoever speaks with the one before is hung up on."""
        self._attendant = attendant
        for conversation in self._conversations:
            conversation.end()

    async def stop(self) -> None:
        for conversation in self._conversations:
            conversation.end()
        await self._server.stop(grace=1.0)

    async def _attend(
        self, incoming: AsyncIterator[NodeMessage], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[HeadMessage]:
        if (first := await anext(aiter(incoming), None)) is None:
            return
        wanted = _speaker(first)
        if self._credentials is not None and role_at(context) is not wanted:
            how = "pair with `shoal serve --standby`" if wanted is Role.HEAD else "pair with `shoal join`"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"its certificate is not a {wanted.value}'s; {how}")
        attendant = self._attendant
        conversation = NodeConnection(_host(str(context.peer())))
        self._conversations.add(conversation)
        hearing = asyncio.get_running_loop().create_task(self._hear(attendant, conversation, first, incoming))
        try:
            async for message in conversation.outgoing():
                yield message
        finally:
            hearing.cancel()
            (outcome,) = await asyncio.gather(hearing, return_exceptions=True)
            self._conversations.discard(conversation)
            attendant.hung_up(conversation)
            if isinstance(outcome, Exception) and not isinstance(outcome, grpc.aio.UsageError | RemoteProtocolError):
                log.error("a node's message could not be handled", host=conversation.host, exc_info=outcome)
        if isinstance(outcome, RemoteProtocolError):
            log.warning("hung up on a client", host=conversation.host, reason=str(outcome))
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(outcome))

    async def _hear(
        self, attendant: Attendant, conversation: NodeConnection, first: NodeMessage, incoming: AsyncIterator[NodeMessage]
    ) -> None:
        speaker = _speaker(first)  # whose certificate was checked
        try:
            attendant.heard(conversation, first)
            async for message in incoming:
                if _speaker(message) is not speaker:
                    raise RemoteProtocolError(f"a {speaker.value} does not send {type(message).__name__}")
                attendant.heard(conversation, message)
        finally:
            conversation.end()

    async def _describe(self, request: DescribeRequest, context: grpc.aio.ServicerContext[Any, Any]) -> ClusterDescription:
        return self._attendant.describe()

    async def _dismiss(self, request: DismissRequest, context: grpc.aio.ServicerContext[Any, Any]) -> DismissAnswer:
        if self._credentials is not None and role_at(context) is not Role.HEAD:
            return DismissAnswer(message="only the head's machine may send nodes away; ask there")
        return self._attendant.dismiss(request)


def _speaker(message: NodeMessage) -> Role:
    """What a client must be to send a message."""
    return Role.HEAD if isinstance(message, Follow | Copied) else Role.NODE
