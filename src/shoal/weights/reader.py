"""Reads that are under way at once: a disk is fast only when it has several to work on."""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar

import structlog

from shoal.errors import ModelError, WeightsUnreadable
from shoal.weights.direct_file import Source

log = structlog.get_logger()

Ticket = TypeVar("Ticket")


class Arrival(NamedTuple, Generic[Ticket]):
    """The end of a read. With an error, what is in the memory is of no use."""

    ticket: Ticket
    error: WeightsUnreadable | None


class _Order(NamedTuple, Generic[Ticket]):
    source: Source
    offset: int
    into: memoryview
    ticket: Ticket


class Reader(Generic[Ticket]):
    """Threads that read ranges of files into memory, first come, first served. One thread submits and collects.

    depth: reads under way at most, at least 1. More may wait.
    """

    def __init__(self, depth: int) -> None:
        if depth < 1:
            raise ValueError("at least one read at a time")
        self._orders: SimpleQueue[_Order[Ticket] | None] = SimpleQueue()
        self._ends: SimpleQueue[Arrival[Ticket]] = SimpleQueue()
        self._outstanding = 0
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"weights-{i}", daemon=True) for i in range(depth)]
        for thread in self._threads:
            thread.start()

    @property
    def outstanding(self) -> int:
        """Reads that were submitted and whose ends were not collected."""
        return self._outstanding

    def submit(self, source: Source, offset: int, into: memoryview, ticket: Ticket) -> None:
        """Reads as many bytes as `into` holds from `offset` on. Until its end is collected nobody else may use that memory.

        Raises ValueError after `close`.
        """
        if self._closed:
            raise ValueError("the reader is closed")
        self._outstanding += 1
        self._orders.put(_Order(source, offset, into, ticket))

    def poll(self) -> list[Arrival[Ticket]]:
        """Ends since the last call, in the order in which they happened."""
        ends: list[Arrival[Ticket]] = []
        while self._outstanding:
            try:
                ends.append(self._ends.get_nowait())
            except Empty:
                break
            self._outstanding -= 1
        return ends

    def wait(self) -> list[Arrival[Ticket]]:
        """The same, but waits for the first end. At once and empty if nothing is outstanding."""
        if not self._outstanding:
            return []
        first = self._ends.get()
        self._outstanding -= 1
        return [first, *self.poll()]

    def close(self) -> None:
        """Waits for the reads under way; those that wait for a thread are given up. What was read and not collected is still there."""
        if self._closed:
            return
        self._closed = True
        with suppress(Empty):
            while True:
                self._orders.get_nowait()
                self._outstanding -= 1
        for _ in self._threads:
            self._orders.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                error = read_whole(order.source, order.offset, order.into)
            except Exception as bug:  # whatever happens, nobody waits for good, and the next read finds a thread
                log.error("a read failed unexpectedly", exc_info=bug)
                error = WeightsUnreadable(order.source.path, f"reading was given up because of a bug, {bug!r}")
            self._ends.put(Arrival(order.ticket, error))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_whole(source: Source, offset: int, into: memoryview) -> WeightsUnreadable | None:
    """Fills `into`, in several reads if the source gives less at once. The error says why that could not be done."""
    done = 0
    try:
        while done < into.nbytes:
            count = source.read_into(offset + done, into[done:] if done else into)
            if count == 0:
                what = f"it ends at {offset + done}, where {into.nbytes - done} more bytes were expected"
                return WeightsUnreadable(source.path, what)
            done += count
    except WeightsUnreadable as fault:
        return fault
    except ModelError as fault:  # of a source that packs what is read
        return WeightsUnreadable(source.path, str(fault))
    except OSError as fault:
        return WeightsUnreadable(source.path, f"{into.nbytes} bytes at {offset} cannot be read: {fault.strerror or fault}")
    return None
