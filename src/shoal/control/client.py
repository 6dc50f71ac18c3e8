"""A node's end of the conversation, and the questions that a command line asks the head."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from shoal.control.messages import ATTEND, DESCRIBE, OPTIONS, ClusterDescription, DescribeRequest, HeadMessage, NodeMessage
from shoal.errors import ClusterError


class ControlClient:
    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._outbox: asyncio.Queue[NodeMessage | None] = asyncio.Queue()

    def say(self, message: NodeMessage) -> None:
        self._outbox.put_nowait(message)

    async def _outgoing(self) -> AsyncIterator[NodeMessage]:
        while (message := await self._outbox.get()) is not None:
            yield message

    async def attend(self, timeout: float) -> AsyncIterator[HeadMessage]:
        """What the head says, until it hangs up. Raises ClusterError where it cannot be reached or breaks off."""
        try:
            async with asyncio.timeout(timeout):
                await self._channel.channel_ready()
        except TimeoutError:
            raise ClusterError(f"no head answers at {self.address}; is `shoal serve` running there, and the port open?") from None
        call: Any = self._channel.stream_stream(
            ATTEND, request_serializer=NodeMessage.SerializeToString, response_deserializer=HeadMessage.FromString
        )(self._outgoing())
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise ClusterError(f"the head at {self.address} is gone ({error.details()})") from error

    async def close(self) -> None:
        """Says what is left, then hangs up."""
        self._outbox.put_nowait(None)
        await self._channel.close(grace=0.5)


async def describe(address: str, timeout: float = 5.0) -> ClusterDescription:
    """Raises ClusterError where no head answers."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(
            DESCRIBE, request_serializer=DescribeRequest.SerializeToString, response_deserializer=ClusterDescription.FromString
        )
        try:
            return await call(DescribeRequest(), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise ClusterError(f"no head answers at {address}: {error.details()}") from error
