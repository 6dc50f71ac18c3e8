"""The head's keys at a gateway: their hashes and limits, never their secrets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from shoal.gateway.auth.key import ApiKey, KeyId, KeyLimits, KeyRole
from shoal.gateway.auth.keyring import KeyAdministration, Keyring
from shoal.gateway.auth.use import Use
from shoal.gateway.workers.operations import Ask, Blocking
from shoal.request import Priority


class _ToldKeys:
    """A gateway.auth.keyring.KeySource."""

    def __init__(self, keys: Sequence[ApiKey], tell: Callable[[dict[KeyId, Use]], None]) -> None:
        self._keys, self._version, self._tell = [*keys], 1, tell
        self._loop = asyncio.get_running_loop()

    def change(self, keys: Sequence[ApiKey]) -> None:
        self._keys = [*keys]
        self._version += 1

    def version(self) -> int:
        return self._version

    def all(self) -> list[ApiKey]:
        return self._keys

    def add(self, uses: Mapping[KeyId, Use]) -> None:
        """Called from any thread."""
        self._loop.call_soon_threadsafe(self._tell, dict(uses))

    def close(self) -> None:
        """There is no file."""


class RemoteKeyring(Keyring):
    """The head tells it of every change. What operators do with keys, the head does."""

    def __init__(self, keys: Sequence[ApiKey], tell: Callable[[dict[KeyId, Use]], None], ask: Ask) -> None:
        """tell: reports what keys were used for. Must be made in the event loop."""
        self._told, self._do = _ToldKeys(keys, tell), Blocking(ask, KeyAdministration)
        super().__init__(None, source=self._told)

    def change(self, keys: Sequence[ApiKey]) -> None:
        """These are all keys now."""
        self._told.change(keys)
        self._look()

    def all(self) -> list[ApiKey]:
        return self._do("all")

    def create(self, name: str, limits: KeyLimits, expires: float | None, priority: Priority, role: KeyRole) -> tuple[ApiKey, str]:
        return self._do("create", name, limits, expires, priority, role)

    def revoke(self, id: str) -> ApiKey:
        return self._do("revoke", id)
