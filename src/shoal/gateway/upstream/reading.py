"""Reads what another server sends, with a limit."""

from __future__ import annotations

import httpx2

LARGEST = 64 << 20
"""Bytes of an answer that is no stream."""
LARGEST_ERROR = 1 << 20
"""Bytes of one that is no success."""


async def read_whole(answer: httpx2.Response, most: int = LARGEST) -> bytes:
    """The whole body. Raises httpx2.HTTPError, also for one of more than `most` bytes."""
    raw = bytearray()
    async for piece in answer.aiter_bytes():
        raw += piece
        if len(raw) > most:
            raise httpx2.RemoteProtocolError(f"its answer has more than {most} bytes")
    return bytes(raw)
