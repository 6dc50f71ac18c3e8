"""A client's connection: uvicorn's HTTP/1.1 over h11, hardened against clients that stall, flood or send invalid data.

h11 and not the faster httptools: it is strict where the two ends of a proxy chain might read a request differently, limits its
buffers, and reports the state of the conversation, which everything here needs. It costs 5 µs more per event of a stream and 80
µs per request.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from time import monotonic
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from shoal.gateway.http.faults import Fault
from shoal.gateway.http.stall_timeouts import Phase, StallRule, StallTimeouts

MAX_AHEAD = 512 << 10
"""Bytes that a client may send while its request is answered, including the end of its body."""
_SLICE = 16 << 10

_BARE = re.compile(rb"(?<!\r)\n")
_FOLDED = re.compile(rb"\n[ \t]")
_HEAD = re.compile(rb"\n\r?\n")
"""The end of a head."""


class Http(h11.Connection):
    """h11, made as strict as RFC 9112 allows where it is lenient: whatever a proxy in front of it might read differently is refused.

    Heads and trailers are checked before h11 reads them, which copies h11's unread bytes at every event. So h11 is given no
    more than a slice at a time while lines may come: otherwise a body of many small chunks would be copied as often as it has
    chunks.
    """

    def __init__(self, our_role: type[h11.SERVER], max_incomplete_event_size: int) -> None:
        super().__init__(our_role, max_incomplete_event_size)
        self._ahead = bytearray()
        """Bytes not yet given to h11."""
        self._chunked = False

    def receive_data(self, data: bytes) -> None:
        """data: not empty; uvicorn does not report the end."""
        if self._ahead or self._has_lines:
            self._ahead += data
        else:
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._next_event()) is h11.NEED_DATA and self._ahead:
            length = _SLICE if self._has_lines else len(self._ahead)
            super().receive_data(bytes(self._ahead[:length]))
            del self._ahead[:length]
        return event

    @property
    def _has_lines(self) -> bool:
        """Whether anything other than the bytes of a body may come."""
        return self._chunked or self.their_state is not h11.SEND_BODY

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        state = self.their_state
        before = self.trailing_data[0] if self._has_lines else b""
        if state is h11.IDLE:
            end = _HEAD.search(before)
            _check_lines(before[: end.end()] if end else before)
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunked = _check_framing(event)
        elif isinstance(event, h11.EndOfMessage) and state is h11.SEND_BODY and self._chunked:  # trailers
            _check_lines(before[: len(before) - len(self.trailing_data[0])])
        return event


def _check_lines(lines: bytes) -> None:
    """Raises h11.RemoteProtocolError."""
    if _BARE.search(lines):
        raise h11.RemoteProtocolError("a line ends without a carriage return")
    if _FOLDED.search(lines):
        raise h11.RemoteProtocolError("a header goes on in the next line")


def _check_framing(request: h11.Request) -> bool:
    """Whether the body is chunked. Raises h11.RemoteProtocolError if its length is ambiguous (RFC 9112, 6.1)."""
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" not in names:
        return False
    if b"content-length" in names:
        raise h11.RemoteProtocolError("Content-Length beside Transfer-Encoding")
    if request.http_version < b"1.1":
        raise h11.RemoteProtocolError("HTTP/1.0 has no Transfer-Encoding")
    return True


class Connections:
    """The connections of one server. At the limit, the one that has been idle longest is closed to make room for a new one."""

    def __init__(self, limit: int, rules: dict[Phase, StallRule]) -> None:
        self.limit, self.rules = limit, rules
        self.open: dict[Connection, None] = {}
        self.waiting: dict[Connection, None] = {}
        """Connections that wait for a request, the longest-waiting first."""

    def made(self, connection: Connection, total: int) -> bool:
        """Whether there is room for it. total: number of connections, including this one and websockets."""
        if total > self.limit:
            if not self.waiting:
                return False
            next(iter(self.waiting)).drop()
        self.open[connection] = self.waiting[connection] = None
        return True

    def lost(self, connection: Connection) -> None:
        self.open.pop(connection, None)
        self.waiting.pop(connection, None)

    def sweep(self, now: float) -> None:
        """Closes connections whose clients are overdue."""
        for connection in list(self.open):
            connection.check(now)

    def hang_up(self) -> None:
        """Closes connections whose request is incomplete: the server is ending and does not wait for the rest."""
        for connection in list(self.open):
            if connection.asking:
                connection.drop()

    def drop(self) -> None:
        """Closes all of them at once."""
        for connection in list(self.open):
            connection.drop()

    async def watch(self) -> None:
        """Sweeps every second until it is cancelled."""
        while True:
            await asyncio.sleep(1)
            self.sweep(monotonic())


class Connection(H11Protocol):
    def __init__(self, connections: Connections, config: Config, server_state: ServerState, app_state: dict[str, Any], **loop: Any) -> None:
        super().__init__(config, server_state, app_state, **loop)
        self.conn = Http(h11.SERVER, config.h11_max_incomplete_event_size or 64 << 10)
        self._all = connections
        self._patience = StallTimeouts(monotonic(), connections.rules)
        self._turn = self._received = self._caught_up = self._ahead = 0
        self._fresh = True
        """Whether nothing has come since the last answer."""

    # Calls from the transport

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if not self._all.made(self, len(self.connections)):
            self._refuse(Fault(503, "the server has too many connections; try again later", "server_error", code="too_many_connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._all.lost(self)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._received += len(data)
        self._fresh = False
        super().data_received(data)
        if not self._answering:
            return
        self._all.waiting.pop(self, None)
        if self.cycle.more_body:
            return
        # Requests sent while another is being answered. uvicorn would stop reading, and not notice that the client leaves.
        self._ahead += len(data)
        if self._ahead > MAX_AHEAD:
            self.drop()
        else:
            self.flow.resume_reading()

    def resume_writing(self) -> None:
        self._caught_up += 1
        super().resume_writing()

    # Calls from uvicorn

    def on_response_complete(self) -> None:
        self._turn += 1
        self._ahead = 0
        self._fresh = True
        self._all.waiting[self] = None
        super().on_response_complete()
        if self._answering:  # the next request was already here
            self._all.waiting.pop(self, None)

    def send_400_response(self, msg: str) -> None:
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(Fault(status, f"{msg} {error or ''}".strip(), "invalid_request_error", code="invalid_http"))

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._all.lost(self)
        super().handle_websocket_upgrade(event)

    # Additions

    def drop(self) -> None:
        """Closes at once, in any state; a running request is cancelled."""
        self._all.lost(self)
        self.connections.discard(self)  # before the transport reports it closed: there is room now
        self.transport.abort()

    def check(self, now: float) -> None:
        phase, moved = self._doing()
        if not self._patience.overdue(now, phase, (self._turn, self._caught_up), moved):
            return
        if phase in (Phase.REQUEST, Phase.BODY) and self._received:
            self._refuse(Fault(408, "the request took too long to come", "invalid_request_error", code="request_timeout"))
        else:
            self.drop()

    @property
    def asking(self) -> bool:
        """Whether part of a request's body is still to come."""
        return self._answering and self.cycle.more_body

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]

    def _doing(self) -> tuple[Phase, int]:
        """What the client has to do, and how far it is, in bytes."""
        if self.flow.write_paused or self.transport.is_closing():
            return Phase.READING, -self.transport.get_write_buffer_size()
        if self._answering:
            reading = self.cycle.more_body and not self.flow.read_paused
            return (Phase.BODY, self._received) if reading else (Phase.AT_EASE, 0)
        if self.conn.their_state is h11.SEND_BODY:
            return Phase.DRAINING, 0
        return (Phase.AT_EASE if self._fresh and self._turn else Phase.REQUEST), 0

    def _refuse(self, fault: Fault) -> None:
        """Answers, if no answer has begun, and closes."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(fault.body).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
            for event in (h11.Response(status_code=fault.status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        if self._answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()


class SocketConnection(WebSocketsSansIOProtocol):
    """A WebSocket. A client that does not answer a ping, because it is gone or does not read, is dropped with everything that
    waits for it."""

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()  # closing would wait until the client reads
