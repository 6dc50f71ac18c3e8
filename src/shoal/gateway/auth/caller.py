"""The caller of a request, for any code in the gateway: carried in a context variable, through tasks and threads."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from shoal.gateway.auth.key import ApiKey, KeyId
from shoal.gateway.auth.keyring import Keyring
from shoal.gateway.auth.limits import Allowance, Limiter
from shoal.request import Priority


@dataclass(frozen=True)
class Caller:
    """key: None if the API requires none. limiter: None: no limits."""

    keyring: Keyring | None = None
    limiter: Limiter | None = None
    key: ApiKey | None = None
    floor: Priority = Priority.URGENT
    """The highest class that it wants, whatever the key allows."""

    @property
    def id(self) -> KeyId:
        return KeyId("") if self.key is None else self.key.id

    @property
    def priority(self) -> Priority:
        """The highest class that its requests may have."""
        return self.floor if self.key is None else max(self.floor, self.key.priority)

    async def enter(self) -> Allowance:
        """A request to the model begins; `leave` must follow. Raises RateLimited."""
        if self.key is None:
            return Allowance()
        allowance = Allowance() if self.limiter is None else await self.limiter.enter(self.key.id, self.key.limits)
        if self.keyring is not None:
            self.keyring.used(self.key.id, requests=1)
        return allowance

    def leave(self) -> None:
        if self.key is not None and self.limiter is not None:
            self.limiter.leave(self.key.id)

    def spend(self, *, prompt: int = 0, completion: int = 0) -> None:
        """Counts tokens of an accepted prompt, or sampled for an answer."""
        if self.key is None:
            return
        if self.keyring is not None:
            self.keyring.used(self.key.id, prompt=prompt, completion=completion)
        if self.limiter is not None:
            self.limiter.spend(self.key.id, prompt + completion)


_ANYBODY = Caller()
CALLER: ContextVar[Caller] = ContextVar("caller", default=_ANYBODY)
