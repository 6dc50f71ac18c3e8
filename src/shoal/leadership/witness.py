"""The lease that a witness keeps: `shoal witness` on a machine that is none of the heads'."""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_hex
from typing import Any

import grpc
import grpc.aio
import msgspec

from shoal.address import grpc_target
from shoal.control.channel import OPTIONS
from shoal.errors import ConfigError, LeaseUnreachable
from shoal.leadership.clock import elapsed
from shoal.leadership.lease import DURATION, Grant, Holder
from shoal.leadership.witness_protocol import SERVICE, Acquire, Inquire, Release, Renew, State
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials

_SHARE = 1 / 4  # of the duration, for an answer
_OPTIONS = [
    *OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),  # a lease is over long before gRPC's two minutes
]


class WitnessLease:
    def __init__(
        self,
        address: str,
        cluster: str,
        duration: float = DURATION,
        credentials: Credentials | None = None,
        now: Callable[[], float] = elapsed,
    ) -> None:
        """address: HOST:PORT of the witness. With credentials, of a head: over mutual TLS. Raises ConfigError; nothing is sent yet."""
        self.duration = duration
        self.address, self._cluster, self._now = address, cluster, now
        target = grpc_target(address)
        self._channel = (
            grpc.aio.insecure_channel(target, options=_OPTIONS)
            if credentials is None
            else credentials.grpc_channel(target, _OPTIONS, Role.WITNESS)
        )
        self._owner = token_hex(16)
        self._term = self._seen = 0

    def __repr__(self) -> str:
        return f"WitnessLease({self.address})"

    async def acquire(self, address: str) -> Grant | None:
        sent = self._now()
        state = await self._ask(Acquire(self._cluster, self._owner, address, self._seen, self.duration))
        if not state.granted:
            return None
        self._term = state.term
        return Grant(state.term, sent + self.duration)

    async def renew(self) -> Grant | None:
        sent, term = self._now(), self._term
        state = await self._ask(Renew(self._cluster, self._owner, term, self.duration))
        return Grant(term, sent + self.duration) if state.granted else None

    async def release(self) -> None:
        await self._ask(Release(self._cluster, self._owner, self._term))

    async def holder(self) -> Holder | None:
        state = await self._ask(Inquire(self._cluster))
        return Holder(state.address, state.term) if state.address else None

    async def close(self) -> None:
        await self._channel.close()

    async def _ask(self, request: Acquire | Renew | Release | Inquire) -> State:
        """Raises LeaseUnreachable, ConfigError."""
        channel: Any = self._channel
        call = channel.unary_unary(f"/{SERVICE}/{type(request).__name__}")
        try:
            state = msgspec.json.decode(await call(msgspec.json.encode(request), timeout=self.duration * _SHARE), type=State)
        except grpc.aio.AioRpcError as error:
            raise self._refused(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._stranger() from None
        self._seen = max(self._seen, state.term)
        return state

    def _refused(self, error: grpc.aio.AioRpcError) -> ConfigError | LeaseUnreachable:
        told = error.details() or error.code().name
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return self._stranger()
        if error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT):
            return ConfigError(f"the witness at {self.address} refuses this head: {told}")
        return LeaseUnreachable(f"the witness at {self.address}", told)

    def _stranger(self) -> ConfigError:
        return ConfigError(f"what answers at {self.address} is no witness; `shoal witness` starts one, and says its address")
