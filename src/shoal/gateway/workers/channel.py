"""One end of the conversation between a worker and the head: messages in, messages out.

A message is its length, as a little-endian u32, and that many bytes of msgpack. Everything sent in one turn of the event loop
goes out in one write, and the tokens of one turn in one message.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Generic

import msgspec
import structlog

from shoal.errors import RemoteProtocolError
from shoal.gateway.workers.messages import Heard, Message, Said
from shoal.request import TokenChunk
from shoal.sizes import human_bytes

log = structlog.get_logger()

MAX_MESSAGE = 64 << 20
MAX_UNREAD = 32 << 20
"""Bytes that may wait for the other end to read them; beyond that, the connection is given up."""
_MOST_CHUNKS = 4096  # in one message
_LENGTH = struct.Struct("<I")


class Channel(Generic[Heard]):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Any) -> None:
        """heard: the union of the messages that the other end may send."""
        self._reader, self._writer = reader, writer
        self._decoder: msgspec.msgpack.Decoder[Heard] = msgspec.msgpack.Decoder(heard)
        self._encoder = msgspec.msgpack.Encoder()
        self._outbox: list[bytes | list[TokenChunk]] = []

    async def hear(self) -> Heard:
        """The next message. Raises EOFError if the other end is gone, RemoteProtocolError if the message is invalid."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_MESSAGE:
                raise RemoteProtocolError(f"a message of {human_bytes(length)}; the limit is {human_bytes(MAX_MESSAGE)}")
            return self._decoder.decode(await self._reader.readexactly(length))
        except msgspec.MsgspecError as error:
            raise RemoteProtocolError(f"a message that cannot be read: {error}") from error
        except OSError as error:
            raise EOFError(str(error)) from error

    def say(self, message: Message) -> None:
        """Sends it at the end of this turn; lost if the other end is gone. Raises OverflowError for a number of over 64 bits."""
        self._put(self._encoder.encode(message))

    def say_token(self, chunk: TokenChunk) -> None:
        last = self._outbox[-1] if self._outbox else None
        if isinstance(last, list) and len(last) < _MOST_CHUNKS:
            last.append(chunk)
        else:
            self._put([chunk])

    def _put(self, said: bytes | list[TokenChunk]) -> None:
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(said)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        transport = self._writer.transport
        if transport.is_closing():
            return
        parts: list[bytes] = []
        for said in outbox:
            data = said if isinstance(said, bytes) else self._encoder.encode(Said(said))
            parts += (_LENGTH.pack(len(data)), data)
        self._writer.write(b"".join(parts))
        if (unread := transport.get_write_buffer_size()) > MAX_UNREAD:
            log.error("the other end of an API worker's socket does not read, and is given up", unread=human_bytes(unread))
            transport.abort()

    async def close(self) -> None:
        """Sends what is queued first."""
        self._flush()
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return  # the other end was already gone

    def abort(self) -> None:
        self._writer.transport.abort()
