"""What a body costs: of what h11 has not read, little is copied."""

from __future__ import annotations

import h11
import pytest

from shoal.gateway.http.connection import Http

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n"
PIECE = 256 << 10
"""Bytes that uvloop reads at once."""


class Counting(Http):
    copied = 0
    largest = 0

    @property
    def trailing_data(self) -> tuple[bytes, bool]:
        told = super().trailing_data
        self.copied += len(told[0])
        self.largest = max(self.largest, len(told[0]))
        return told


def fed(framing: bytes, body: bytes) -> tuple[Counting, bytes]:
    """A connection that was given a request as it comes, and the body that it made of it."""
    connection, got, over = Counting(h11.SERVER, 64 << 10), bytearray(), False
    said = HEAD % framing + body
    for at in range(0, len(said), PIECE):
        connection.receive_data(said[at : at + PIECE])
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            got += event.data if isinstance(event, h11.Data) else b""
            over = over or isinstance(event, h11.EndOfMessage)
    assert over
    return connection, bytes(got)


def test_of_a_body_whose_length_is_known_nothing_is_copied() -> None:
    body = b"x" * (4 << 20)
    connection, got = fed(b"Content-Length: %d" % len(body), body)
    assert got == body and connection.copied < 64 << 10


@pytest.mark.parametrize("size", [7, 5000, 100_000])
def test_of_chunks_a_slice_at_most_is_copied_for_each(size: int) -> None:
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    count = 300_000 // size
    connection, got = fed(b"Transfer-Encoding: chunked", chunk * count + b"0\r\nX-A: 1\r\n\r\n")
    assert got == b"x" * size * count and connection.largest <= 32 << 10
