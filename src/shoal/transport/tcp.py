"""Frames over TCP: received into their own memory, sent without copying the body."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import deque
from time import perf_counter
from typing import Any, cast

from shoal.address import join_host_port, listening_socket, of_socket
from shoal.errors import RemoteProtocolError
from shoal.transport.base import Handler
from shoal.wire.frame import GREETING, MAX_BODY, MAX_META, Frame, FrameDecoder

_HANDSHAKE = 10.0  # seconds for TLS
_CLOSING = 5.0  # seconds that a closing stream waits for unsent data to go out
_READ_AHEAD = 16  # frames that may wait for their reader before the peer is slowed down


class _Protocol(asyncio.BufferedProtocol):
    def __init__(self, accepted: _Accepted | None = None) -> None:
        self._accepted = accepted
        self._decoder = FrameDecoder(GREETING, GREETING)  # a peer that has not introduced itself must not make this side reserve memory
        self.frames: deque[tuple[Frame, float]] = deque()
        self.failure: Exception | None = None
        self.readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        raw = self.transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._accepted is not None:
            self._accepted.start(TcpStream(self))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            frames = self._decoder.received(nbytes)
        except RemoteProtocolError as error:
            self._fail(error)
            self.transport.abort()
            return
        if frames:
            now = perf_counter()
            self.frames.extend((frame, now) for frame in frames)
            self._wake()
        if len(self.frames) > _READ_AHEAD and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        cut = self._decoder.mid_frame
        self._fail(ConnectionError("the peer ended the connection inside a frame") if cut else EOFError("the peer ended the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None or self._decoder.mid_frame:  # under TLS, the end inside a frame may come without an error
            self._fail(ConnectionError(f"the connection broke: {exc or 'inside a frame'}"))
        self._fail(EOFError("the connection is closed"))
        if not self.lost.done():
            self.lost.set_result(None)
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    @property
    def full(self) -> bool:
        """Whether the peer has to take something before more is accepted."""
        return self._writable is not None

    async def drain(self) -> None:
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def trust(self, body: int | None) -> None:
        self._decoder.max_body = MAX_BODY if body is None else body
        if body is None:
            self._decoder.max_meta = MAX_META

    def taken(self) -> None:
        if self._paused and len(self.frames) <= _READ_AHEAD // 2 and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def _fail(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = error
        self._wake()

    def _wake(self) -> None:
        if self.readable is not None and not self.readable.done():
            self.readable.set_result(None)


class TcpStream:
    def __init__(self, protocol: _Protocol) -> None:
        self._protocol = protocol
        self.arrived = 0.0
        address: Any = protocol.transport.get_extra_info("peername")
        self.peer = join_host_port(of_socket(address), address[1]) if address else "a peer that is gone"
        certificate: Any = protocol.transport.get_extra_info("peercert") or {}
        self.peer_names = [name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"]
        """The names in the peer's certificate; none without TLS."""

    async def send(self, frame: Frame) -> None:
        self._write(frame)
        await self._protocol.drain()
        self._check()

    def offer(self, frame: Frame) -> bool:
        if self._protocol.full:
            return False
        self._write(frame)
        self._check()
        return True

    def _write(self, frame: Frame) -> None:
        transport = self._protocol.transport
        if transport.is_closing():
            raise ConnectionError(f"the connection to {self.peer} is closed")
        buffers = frame.buffers()
        if len(buffers) == 1:
            transport.write(buffers[0])
        else:
            transport.writelines(buffers)

    def _check(self) -> None:
        if isinstance(failure := self._protocol.failure, ConnectionError):
            raise ConnectionError(f"the connection to {self.peer} broke: {failure}")

    async def receive(self) -> Frame:
        protocol = self._protocol
        while not protocol.frames:
            if protocol.failure is not None:
                raise protocol.failure
            protocol.readable = asyncio.get_running_loop().create_future()
            await protocol.readable
        frame, self.arrived = protocol.frames.popleft()
        protocol.taken()
        return frame

    async def close(self) -> None:
        self.finish()
        await asyncio.wait({self._protocol.lost}, timeout=_CLOSING)
        self._protocol.transport.abort()  # a peer that does not read must not hold this side up

    def abort(self) -> None:
        transport = self._protocol.transport
        raw = transport.get_extra_info("socket")
        if raw is not None and not transport.is_closing():  # a reset, so that the peer does not take this for a clean end
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def finish(self) -> None:
        """Like close, but does not wait for it."""
        if not self._protocol.transport.is_closing():  # until Python 3.11.4, one of TLS that is closed twice cannot be aborted any more
            self._protocol.transport.close()

    def trust(self, body: int | None = None) -> None:
        self._protocol.trust(body)


class _Accepted:
    """Runs the handler of each accepted stream, and keeps a reference to it."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, stream: TcpStream) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: TcpStream) -> None:
        try:
            await self._handler(stream)
        finally:
            stream.finish()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class TcpListener:
    def __init__(self, server: asyncio.Server, accepted: _Accepted) -> None:
        self._server = server
        self._accepted = accepted

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        self._server.close()
        await self._accepted.stop()


def _tls_limits(context: ssl.SSLContext | None) -> dict[str, Any]:
    return {} if context is None else {"ssl_handshake_timeout": _HANDSHAKE, "ssl_shutdown_timeout": _CLOSING}


async def listen(host: str, port: int, handler: Handler, context: ssl.SSLContext | None = None) -> TcpListener:
    """Serves each accepted stream with `handler`, over TLS if there is a context. Raises ConfigError if the address cannot be used."""
    accepted = _Accepted(handler)
    bound = await asyncio.to_thread(listening_socket, host, port)
    server = await asyncio.get_running_loop().create_server(lambda: _Protocol(accepted), sock=bound, ssl=context, **_tls_limits(context))
    return TcpListener(server, accepted)


async def connect(host: str, port: int, timeout: float, context: ssl.SSLContext | None = None, server_name: str | None = None) -> TcpStream:
    """Connects, with a context over TLS, to a peer whose certificate is for `server_name`. Raises ConnectionError, TimeoutError."""
    where = join_host_port(host, port)
    try:
        async with asyncio.timeout(timeout):
            _, protocol = await asyncio.get_running_loop().create_connection(
                lambda: _Protocol(), host, port, ssl=context, server_hostname=server_name, **_tls_limits(context)
            )
    except TimeoutError:
        raise TimeoutError(f"{where} did not answer within {timeout:g} s") from None
    except ssl.SSLError as error:
        raise ConnectionError(f"{where} has no certificate of this cluster: {error.reason or error}") from error
    except OSError as error:
        raise ConnectionError(f"cannot reach {where}: {error.strerror or error}") from error
    return TcpStream(protocol)
