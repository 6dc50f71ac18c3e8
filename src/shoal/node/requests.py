"""The requests of a head: those that a driver runs, and those that began under another head and wait for the first route."""

from __future__ import annotations

from collections.abc import Callable

from shoal.errors import NotReady, ShoalError
from shoal.pipeline.driver import Driver
from shoal.pipeline.token_stream import TokenStream
from shoal.scheduler.limits import Limits
from shoal.scheduler.scheduler import Scheduler


class Requests:
    def __init__(self, made: Callable[[Scheduler], Driver]) -> None:
        """made: creates the driver when the first route is known."""
        self.driver: Driver | None = None
        self._made = made
        self._resumed: list[TokenStream] = []

    def __len__(self) -> int:
        """How many have not ended."""
        return len(self._resumed) if self.driver is None else self.driver.requests

    def take_up(self, stream: TokenStream) -> None:
        """Continues a request that began under another head, as soon as there is a route."""
        if self.driver is None:
            self._resumed.append(stream)
        else:
            self.driver.take_up(stream)

    def hand_over(self) -> list[TokenStream]:
        """Gives up the requests that can go on elsewhere."""
        if self.driver is not None:
            return self.driver.hand_over()
        waiting, self._resumed = self._resumed, []
        return waiting

    def end_all(self, error: ShoalError) -> None:
        """Ends every request, including those that wait for the first route."""
        if self.driver is not None:
            self.driver.end_all(error)
        for stream in self._resumed:
            stream.put(error)
        self._resumed.clear()

    def refuse(self, reason: str) -> None:
        """Ends every request with that reason, and accepts no more."""
        if self.driver is not None:
            self.driver.close(NotReady(reason))
        else:
            self.end_all(NotReady(reason))

    def fitted(self, limits: Limits) -> Driver:
        """The driver, with its scheduler fitted to a route."""
        if self.driver is None:
            self.driver = self._made(Scheduler(limits))
            for stream in self._resumed:
                self.driver.take_up(stream)
            self._resumed.clear()
        elif self.driver.scheduler.limits.blocks == limits.blocks:
            self.driver.scheduler.deepen(limits.depth)
        else:
            self.driver.restart(limits)
        return self.driver
