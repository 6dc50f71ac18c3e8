"""The head's ends of a route that is being opened or driven."""

from __future__ import annotations

import asyncio

from shoal.transport.base import FrameStream


class Opening:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.results: asyncio.Future[FrameStream] = asyncio.get_running_loop().create_future()
        """The last stage's link; set when it has connected."""
        self.over = asyncio.Event()
