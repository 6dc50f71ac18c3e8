"""The standby heads that follow the one that leads: what they are sent, what they have, and what waits for that.

A standby attends like a node, and says `Follow` instead of `Join`. It gets every file that a successor needs as it is now, then what is
added to the logs of requests. It tells up to which message its copy is whole.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import structlog

from shoal import __version__
from shoal.control import messages as control
from shoal.control.server import NodeConnection
from shoal.errors import NotReady
from shoal.sizes import human_bytes

log = structlog.get_logger()

_PIECE = 1 << 20  # bytes of a file in one message
_MOST_UNSAID = 64 << 20  # bytes beyond the files themselves that a standby may be behind
_LOOK = 0.5  # seconds between looks for changes of what is not told by itself
_PATIENCE = 1.0  # seconds for which tokens wait for a standby that does not answer
_DEPOSED = "this head does not lead any more; ask again, another one leads soon"


@dataclass(frozen=True)
class Leadership:
    """What a head leads by."""

    term: int
    leads: Callable[[], bool]
    """Whether it still does, at this moment."""
    within: float
    """Seconds after which a node that hears nothing counts the head as lost."""
    address: str
    """Of this head, for nodes and for other heads."""
    before: bool
    """Whether tokens are handed out only when a standby has them, if there is one."""


class Log(Protocol):
    """See pipeline.request_log.RequestLog."""

    def snapshot(self, take: Callable[[bytes], None]) -> None: ...


Version = tuple[int, int]
"""Which file it is, and a number that changes with it."""


class Changing(Protocol):
    """Files that are copied whole when they have changed."""

    def changed(self, known: Mapping[str, Version]) -> dict[str, tuple[Version, bytes]]:
        """Those whose version is not the known one, by name: the version, and what they hold. Blocks; called by several threads at once."""
        ...


@dataclass(eq=False)
class _Standby:
    conversation: NodeConnection
    address: str
    whole_at: int | None = None
    """The message with which its copy became whole; None: it is not yet."""
    has: int = 0
    """The last message that is in its copy."""
    logs: set[str] = field(default_factory=set[str])
    """Whose snapshot it was sent."""
    files: dict[str, Version] = field(default_factory=dict[str, Version])
    """Versions of those that it was sent."""
    unsaid: deque[tuple[int, int]] = field(default_factory=deque[tuple[int, int]])
    """Of the messages that it has not acknowledged: number and size."""
    behind: int = 0
    """Bytes of these."""
    allowed: int = field(default_factory=lambda: _MOST_UNSAID)
    """Bytes that it may be behind."""

    @property
    def counts(self) -> bool:
        """Whether what it says that it has is all that there was."""
        return self.whole_at is not None and self.has >= self.whole_at


class Followers:
    def __init__(
        self, leadership: Leadership, serves: Callable[[], control.Serves], files: Changing | None = None, patience: float = _PATIENCE
    ) -> None:
        """serves: what this head serves now. patience: seconds for which tokens wait for a standby that does not answer."""
        self.leadership = leadership
        self._serves, self._files, self._patience = serves, files, patience
        self._logs: dict[str, Log] = {}
        self._standbys: dict[NodeConnection, _Standby] = {}
        self._number = 0
        self._held: deque[tuple[int, Callable[[], None]]] = deque()
        """What waits until the standbys have the message of that number."""
        self._confirming: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._alone = True
        self._tasks: set[asyncio.Task[None]] = set()

    # Logs

    def keep(self, name: str, log: Log) -> None:
        """Copies one more log. name: of its model."""
        self._logs[name] = log
        for standby in self._standbys.values():
            self._copy_log(standby, name, lambda: None)

    def drop(self, name: str) -> None:
        self._logs.pop(name, None)
        for standby in self._standbys.values():
            standby.logs.discard(name)

    def put(self, name: str, data: bytes) -> None:
        """A record is added to a log."""
        if name not in self._logs:
            return
        self._number += 1
        for standby in [*self._standbys.values()]:
            if name in standby.logs:
                self._say(standby, control.Append(name=f"requests/{name}", data=data, number=self._number), len(data))

    # What waits

    def hand_out(self, deliver: Callable[[], None]) -> None:
        """Calls `deliver` when every standby with a whole copy has all that was put so far, or at once if there is none or nobody is to wait;
        in order. Never if this head does not lead any more."""
        if not self.leadership.leads():
            return
        if self._held or (self.leadership.before and self.copied):
            self._held.append((self._number, deliver))
            self._release()
            self._watch()
        else:
            deliver()

    async def confirmed(self) -> None:
        """Returns when what was put so far may be answered for. Raises NotReady if this head does not lead any more."""
        if not self.leadership.leads():
            raise NotReady(_DEPOSED)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._confirming.add(done)
        try:
            self.hand_out(partial(_set, done))
            await done
        finally:
            self._confirming.discard(done)

    def _release(self) -> None:
        had = min((standby.has for standby in self._standbys.values() if standby.counts), default=self._number)  # any of them may lead next
        leads = self.leadership.leads()
        while self._held and self._held[0][0] <= had:
            _, deliver = self._held.popleft()
            if leads:
                deliver()
        if not leads:
            self._give_up()
        if not self._held and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        """Nothing is answered for any more."""
        for done in self._confirming:
            if not done.done():
                done.set_exception(NotReady(_DEPOSED))

    def _watch(self) -> None:
        if self._held and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._patience, self._overdue, self._held[0][0])

    def _overdue(self, wanted: int) -> None:
        """wanted: what was waited for when the time began. What is waited for now may have come just before."""
        self._timer = None
        for standby in [standby for standby in self._standbys.values() if standby.counts and standby.has < wanted]:
            self._lose(standby, f"it has not answered for {self._patience:g} s")
        self._watch()

    # Standbys

    @property
    def addresses(self) -> list[str]:
        """Of the heads that may lead next: those whose copy is whole come first."""
        return [standby.address for standby in sorted(self._standbys.values(), key=lambda standby: not standby.counts)]

    @property
    def copied(self) -> bool:
        """Whether a standby has everything that a successor needs."""
        return any(standby.counts for standby in self._standbys.values())

    @property
    def heads(self) -> control.Heads:
        return control.Heads(term=self.leadership.term, others=self.addresses, within=self.leadership.within)

    def tell(self) -> None:
        """Says that this head leads, to those that follow it."""
        for standby in self._standbys.values():
            standby.conversation.say(self.heads)

    def heard(self, conversation: NodeConnection, message: control.NodeMessage) -> bool:
        """Returns whether it is from a standby, or one that wants to be."""
        standby = self._standbys.get(conversation)
        match message:
            case control.Follow() if standby is None:
                self._follow(conversation, message)
            case control.Copied(number=number) if standby is not None:
                self._copied(standby, number)
            case _:
                return standby is not None
        return True

    def _follow(self, conversation: NodeConnection, follow: control.Follow) -> None:
        if follow.version != __version__:
            why = f"it is shoal {follow.version}, and the head that leads is {__version__}; install the same version on both"
            conversation.say(control.Refuse(reason=why))
            conversation.end()
            return
        for old in [standby for standby in self._standbys.values() if standby.address == follow.address]:
            self._lose(old, "it follows anew")
        standby = self._standbys[conversation] = _Standby(conversation, follow.address)
        log.info("a standby follows", address=follow.address)
        conversation.say(self.heads)
        task = asyncio.get_running_loop().create_task(self._send_all(standby))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a standby could not be sent what it needs", exc_info=error)

    async def _send_all(self, standby: _Standby) -> None:
        """What there is now; then looks for changes of what is not told by itself, for as long as it follows."""
        loop = asyncio.get_running_loop()
        try:
            self._say_serves(standby, serves := self._serves())
            copied: list[asyncio.Future[None]] = []
            for name in self._logs:
                done: asyncio.Future[None] = loop.create_future()
                self._copy_log(standby, name, partial(_set, done))
                copied.append(done)
            await asyncio.gather(*copied)
            await self._send_files(standby)
            standby.whole_at = self._number = self._number + 1
            self._say_serves(standby, serves, whole=True)
            while self._standbys.get(standby.conversation) is standby:
                await asyncio.sleep(_LOOK)
                await self._send_files(standby)
                if (now := self._serves()) != serves:
                    self._say_serves(standby, serves := now, whole=True)
        except Exception:
            self._lose(standby, "it could not be sent what it needs")
            raise

    def _say_serves(self, standby: _Standby, serves: control.Serves, whole: bool = False) -> None:
        self._number += 1
        message = control.Serves(
            settings=serves.settings, models=serves.models, authority=serves.authority, whole=whole, number=self._number
        )
        self._say(standby, message, len(serves.settings) + len(serves.models))

    def _copy_log(self, standby: _Standby, name: str, then: Callable[[], None]) -> None:
        def take(data: bytes) -> None:
            if self._logs.get(name) is log:
                self._send_file(standby, f"requests/{name}", data)
                standby.logs.add(name)
            then()

        log = self._logs[name]
        log.snapshot(take)

    async def _send_files(self, standby: _Standby) -> None:
        if self._files is None:
            return
        for name, (version, data) in (await asyncio.to_thread(self._files.changed, dict(standby.files))).items():
            standby.files[name] = version
            self._send_file(standby, name, data)

    def _send_file(self, standby: _Standby, name: str, data: bytes) -> None:
        standby.allowed = max(standby.allowed, _MOST_UNSAID + len(data) + standby.behind)
        for at in range(0, max(len(data), 1), _PIECE):
            piece, last = data[at : at + _PIECE], at + _PIECE >= len(data)
            self._number += 1
            self._say(standby, control.Copy(name=name, data=piece, first=at == 0, last=last, number=self._number), len(piece))

    def _say(self, standby: _Standby, message: control.HeadMessage, size: int) -> None:
        if self._standbys.get(standby.conversation) is not standby:
            return
        standby.conversation.say(message)
        standby.unsaid.append((self._number, size))
        standby.behind += size
        if standby.behind > standby.allowed:
            self._lose(standby, f"it is {human_bytes(standby.behind)} behind")

    def _copied(self, standby: _Standby, number: int) -> None:
        standby.has = max(standby.has, min(number, self._number))
        while standby.unsaid and standby.unsaid[0][0] <= standby.has:
            standby.behind -= standby.unsaid.popleft()[1]
        if standby.counts and self._alone:
            self._alone = False
            log.info("a standby has all that it needs", address=standby.address)
        self._release()

    def hung_up(self, conversation: NodeConnection) -> None:
        if (standby := self._standbys.get(conversation)) is not None:
            self._lose(standby, "its connection ended")

    def _lose(self, standby: _Standby, why: str) -> None:
        """It may follow again, and then gets everything anew."""
        if self._standbys.pop(standby.conversation, None) is None:
            return
        standby.conversation.end()
        log.warning("a standby is lost", address=standby.address, reason=why)
        if not self.copied and not self._alone:
            self._alone = True
            log.error("no standby has a copy now; requests go on without")
        self._release()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        self._held.clear()
        self._give_up()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
