"""An event loop with simulated time: when nothing is left to run, it jumps to the next timer."""

from __future__ import annotations

import asyncio
from typing import Any


class Deadlock(Exception):
    """Everything waits, and nothing will ever happen."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """No sockets, no threads, no real time; the order of events depends only on the program."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._now

    # What BaseEventLoop requires of a selector and of its subclass.

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Deadlock("everybody waits, and nothing will ever happen")
        self._now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass  # no other thread needs to wake it
