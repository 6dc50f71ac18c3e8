"""The lease in Redis: a key that expires, and one beside it that does not, with the last term.

    shoal:lease:<cluster>   who has it; expires with the grant
    shoal:term:<cluster>    the last term, and which run of the server it was granted by

Both are read and written in transactions over one connection. Redis may lose what it was told last, by a restart or by a failover to
a replica; then it runs under another id than the one beside the term. So whoever meets a new run has the lease wait for one duration
under nobody's name: by then every grant that was forgotten is over. Only the head whose grant still runs may go on, as its grant says
that there is no other.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import Any, TypeVar, cast

import msgspec
from redis.asyncio.client import Pipeline
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, WatchError

from shoal.discovery.redis_client import client_of, failure
from shoal.discovery.redis_url import RedisUrl
from shoal.errors import ConfigError, LeaseUnreachable, ShoalError
from shoal.leadership.clock import elapsed
from shoal.leadership.lease import DURATION, Grant, Holder
from shoal.leadership.record import Record

T = TypeVar("T")
LEASE, TERM = "shoal:lease:", "shoal:term:"
_TRIES = 5


class Counter(msgspec.Struct, frozen=True):
    """run: Redis's own id of its process, which changes whenever it may have forgotten something."""

    term: int
    run: str


class RedisLease:
    def __init__(self, url: RedisUrl, cluster: str, duration: float = DURATION, now: Callable[[], float] = elapsed) -> None:
        """Nothing is sent yet."""
        self.duration = duration
        self._url, self._now = url, now
        self._client = client_of(url)
        self._lease, self._counter = LEASE + cluster, TERM + cluster
        self._owner = token_hex(16)
        self._address = ""
        self._grant: Grant | None = None
        self._seen = 0
        """The last term that this head knows of: Redis may have forgotten it."""

    def __repr__(self) -> str:
        return f"RedisLease({self._url.shown})"

    async def acquire(self, address: str) -> Grant | None:
        sent, self._address = self._now(), address

        async def attempt(pipe: Pipeline) -> Grant | None:
            record, counter, run = await self._state(pipe)
            if counter.run != run:
                self._write(pipe, Record("", "", counter.term), Counter(counter.term, run))
                await pipe.execute()
                return None
            if record is not None and record.owner != self._owner:
                return None
            term = max(counter.term, self._seen) + 1
            self._write(pipe, Record(self._owner, address, term), Counter(term, run))
            await pipe.execute()
            return self._granted(term, sent)

        return await self._in_transaction(attempt)

    async def renew(self) -> Grant | None:
        sent = self._now()

        async def attempt(pipe: Pipeline) -> Grant | None:
            record, counter, run = await self._state(pipe)
            grant = self._grant
            if grant is None or not self._may_renew(grant, record, counter.run != run):
                return None
            self._write(pipe, Record(self._owner, self._address, grant.term), Counter(max(counter.term, grant.term), run))
            await pipe.execute()
            return self._granted(grant.term, sent)

        return await self._in_transaction(attempt)

    async def release(self) -> None:
        grant, self._grant = self._grant, None

        async def attempt(pipe: Pipeline) -> None:
            record, _, _ = await self._state(pipe)
            if grant is not None and record is not None and (record.owner, record.term) == (self._owner, grant.term):
                pipe.multi()
                pipe.delete(self._lease)
                await pipe.execute()

        await self._in_transaction(attempt)

    async def holder(self) -> Holder | None:
        async def look(pipe: Pipeline) -> Holder | None:
            record, _, _ = await self._state(pipe)
            return Holder(record.address, record.term) if record is not None and record.owner else None

        return await self._in_transaction(look)

    async def close(self) -> None:
        await self._client.aclose()

    def _may_renew(self, grant: Grant, record: Record | None, restarted: bool) -> bool:
        """Whether the grant still is this head's. Where Redis may have forgotten it, that it still runs is enough: nobody else got one
        before the restart, and after it nobody gets one before those are over."""
        if record is not None and record.owner:
            return (record.owner, record.term) == (self._owner, grant.term)
        return (restarted or record is not None) and self._now() < grant.until

    def _granted(self, term: int, sent: float) -> Grant:
        self._seen = max(self._seen, term)
        self._grant = Grant(term, sent + self.duration)
        return self._grant

    async def _state(self, pipe: Pipeline) -> tuple[Record | None, Counter, str]:
        """Both keys, watched from now on, and the server's run. Raises LeaseUnreachable, ConfigError, RedisError, OSError."""
        await pipe.watch(self._lease, self._counter)
        about: Any = await cast(Any, pipe).info("server")
        if not (run := str(about.get("run_id", ""))):
            raise ConfigError(
                f"{self._url.shown} does not say which run of the server it is (run_id of INFO server), so that a head could not tell that "
                "it forgot a lease; use Redis or Valkey without a proxy, or another --lease"
            )
        held, counted = await _read(pipe, self._lease), await _read(pipe, self._counter)
        try:
            record = msgspec.json.decode(held, type=Record) if held else None
            counter = msgspec.json.decode(counted, type=Counter) if counted else Counter(0, "")
        except (msgspec.DecodeError, UnicodeDecodeError):
            why = f"{self._lease} or {self._counter} holds something else; delete it"
            raise LeaseUnreachable(f"the lease in {self._url.shown}", why) from None
        self._seen = max(self._seen, counter.term, record.term if record is not None else 0)
        return record, counter, run

    def _write(self, pipe: Pipeline, record: Record, counter: Counter) -> None:
        pipe.multi()
        pipe.set(self._lease, msgspec.json.encode(record), px=math.ceil(self.duration * 1000))
        pipe.set(self._counter, msgspec.json.encode(counter))

    async def _in_transaction(self, attempt: Callable[[Pipeline], Awaitable[T]]) -> T:
        """Again where another head was faster. Raises LeaseUnreachable, ConfigError."""
        try:
            async with self._client.pipeline(transaction=True) as pipe:
                for _ in range(_TRIES):
                    try:
                        return await attempt(pipe)
                    except WatchError:
                        await pipe.reset()
        except (RedisError, OSError) as error:
            raise _refused(self._url, error) from None
        raise LeaseUnreachable(f"the lease in {self._url.shown}", "it changes all the time")


async def _read(pipe: Pipeline, key: str) -> bytes | None:
    return await cast(Awaitable[bytes | None], pipe.get(key))


def _refused(url: RedisUrl, error: RedisError | OSError) -> ShoalError:
    if isinstance(error, NoPermissionError):
        return ConfigError(
            f"{url.shown} does not allow what a lease needs ({url.told(error)}); allow this user +@transaction, +info, and +get +set +del "
            f"on keys {LEASE}* and {TERM}*"
        )
    if isinstance(error, AuthenticationError):
        return failure(url, error)
    return LeaseUnreachable(f"the lease in {url.shown}", url.told(error))
