"""The caller of a request, for any code in the gateway: carried in a context variable, through tasks and threads."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from shoal.errors import NotAllowed
from shoal.gateway.auth.key import ApiKey, KeyId, KeyRole
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
    keyless_role: KeyRole = KeyRole.USER
    """Of whoever asks without a key, where none is required."""

    @property
    def id(self) -> KeyId:
        return KeyId("") if self.key is None else self.key.id

    @property
    def role(self) -> KeyRole:
        return self.keyless_role if self.key is None else self.key.role

    def check_operator(self) -> None:
        """Raises NotAllowed."""
        if self.role is not KeyRole.OPERATOR:
            how = "make one with `shoal keys create NAME --role operator`"
            raise NotAllowed(
                f"this needs the key of an operator: {how}"
                if self.key is not None
                else f"this API is open to the network, and this needs a key: {how}"
            )

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
