"""A standby head's end: it attends the head that leads, and keeps a copy of what a successor needs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import structlog

from shoal import __version__
from shoal.control import messages as control
from shoal.errors import ClusterError, ConfigError
from shoal.node.environment import ControlLink

log = structlog.get_logger()

_CONNECTING = 2.0  # seconds
_Kept = control.Serves | control.Copy | control.Append


class KeptCopies(Protocol):
    """See copied_files.CopiedFiles."""

    def apply(self, message: control.Copy | control.Append) -> None: ...


class LeadsElsewhere(ClusterError):
    """address: of the head that leads, as the one that was asked knows it; '' if it does not know."""

    def __init__(self, address: str, message: str) -> None:
        super().__init__(message)
        self.address = address


class Follower:
    def __init__(
        self,
        address: str,
        copies: KeptCopies,
        served: Callable[[control.Serves], None],
        blocking: Callable[[Callable[[], None]], Awaitable[None]] = asyncio.to_thread,
    ) -> None:
        """address: of this head. served: is told what the leading head serves, and of every change. blocking: does work that waits for a
        disk."""
        self.whole = False
        """Whether there was a copy of everything at some time. It stays one when the connection is lost: what came last may be missing."""
        self.begun = False
        """Whether a part of a copy has come, which may have replaced what this head had."""
        self.following = ""
        """Address of the head that is followed now; '' if none is."""
        self.term = 0
        self._address, self._copies, self._served, self._blocking = address, copies, served, blocking

    async def follow(self, address: str, link: ControlLink) -> None:
        """Until the head there leads no more or is silent. Raises ClusterError: why it ended; OSError, ConfigError, RemoteProtocolError:
        what came cannot be kept."""
        link.say(control.Follow(version=__version__, address=self._address))
        loop, came = asyncio.get_running_loop(), asyncio.Queue[_Kept | None]()
        hearing, writing = loop.create_task(self._hear(address, link, came)), loop.create_task(self._write(link, came))
        try:
            done, _ = await asyncio.wait({hearing, writing}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.following = ""
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
            came.put_nowait(None)  # what came before the connection ended is kept, too
            await asyncio.gather(writing, return_exceptions=True)
            await link.close()

    async def _hear(self, address: str, link: ControlLink, came: asyncio.Queue[_Kept | None]) -> None:
        silence = _CONNECTING
        messages = link.attend(_CONNECTING)
        async with contextlib.aclosing(messages):
            while True:
                try:
                    async with asyncio.timeout(2 * silence):
                        message = await anext(messages)
                except TimeoutError:
                    raise ClusterError(f"the head at {address} is silent") from None
                except StopAsyncIteration:
                    raise ClusterError(f"the head at {address} ended the conversation") from None
                match message:
                    case control.Heads(term=term, within=within):
                        if term < self.term:
                            raise ClusterError(f"the head at {address} leads by term {term}, and term {self.term} was seen")
                        if not self.following:
                            log.info("following", leader=address, term=term)
                        self.following, self.term, silence = address, term, within
                    case control.Refuse(reason=reason, follows=True, leader=leader):
                        raise LeadsElsewhere(leader, reason)
                    case control.Refuse(reason=reason):
                        raise ConfigError(f"the head at {address} does not accept this one as a standby: {reason}")
                    case control.Serves() | control.Copy() | control.Append():
                        came.put_nowait(message)
                    case _:
                        pass

    async def _write(self, link: ControlLink, came: asyncio.Queue[_Kept | None]) -> None:
        while True:
            batch = [await came.get()]
            while not came.empty():
                batch.append(came.get_nowait())
            kept = [message for message in batch if message is not None]
            files = [message for message in kept if not isinstance(message, control.Serves)]
            self.begun = self.begun or bool(files)
            await self._blocking(partial(self._apply, files))
            for message in kept:
                if isinstance(message, control.Serves):
                    self._served(message)
                    self.whole = self.whole or message.whole
            if kept:
                link.say(control.Copied(number=kept[-1].number))
            if batch[-1] is None:
                return

    def _apply(self, messages: list[control.Copy | control.Append]) -> None:
        for message in messages:
            self._copies.apply(message)
