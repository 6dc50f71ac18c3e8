"""The keys as a running server knows them: who is admitted, and what each has used."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import time
from typing import Protocol

import msgspec
import structlog

from shoal.errors import ConfigError, NotAuthenticated
from shoal.gateway.auth.key import ApiKey, KeyId, KeyLimits, KeyRole, mint, parted
from shoal.gateway.auth.key_store import KeyStore
from shoal.gateway.auth.use import Use
from shoal.request import Priority

log = structlog.get_logger()

REFRESH = 0.5
"""Seconds between checks whether keys were created or revoked."""
FLUSH = 1.0
"""Seconds between writes of the keys' use: what a crash may lose."""


class KeySource(Protocol):
    """Where keys come from, and where their use is written down."""

    def version(self) -> int:
        """A number that changes whenever `all` may have; cheap."""
        ...

    def all(self) -> Sequence[ApiKey]: ...
    def add(self, uses: Mapping[KeyId, Use]) -> None: ...
    def close(self) -> None: ...


class KeyAdministration(Protocol):
    """What operators do with keys; blocks. See Keyring."""

    def all(self) -> list[ApiKey]: ...
    def create(self, name: str, limits: KeyLimits, expires: float | None, priority: Priority, role: KeyRole) -> tuple[ApiKey, str]: ...
    def revoke(self, id: str) -> ApiKey: ...


class Keyring:
    """Once there is a key, every request needs one, even after the last key is revoked: revoking a key never opens the API."""

    def __init__(self, folder: Path | None, now: Callable[[], float] = time, source: KeySource | None = None) -> None:
        """folder: None: there are no keys and never will be, except those of a source. Raises ConfigError if the key file cannot be
        used."""
        self._folder = folder
        self._store: KeySource | None = KeyStore(folder) if folder is not None else source
        self._now = now
        self._keys: dict[KeyId, ApiKey] = {}
        self._uses: dict[KeyId, Use] = {}
        self._looked, self._version = -REFRESH, 0
        id, _, digest = mint()
        self._nobody = ApiKey(id=id, name="", digest=digest, created=0)
        self._look()

    @property
    def required(self) -> bool:
        self._refresh()
        return bool(self._keys)

    @property
    def usable(self) -> bool:
        """Whether there is a key that would be admitted."""
        self._refresh()
        return any(key.good(self._now()) for key in self._keys.values())

    def admit(self, token: str | None) -> ApiKey:
        """Raises NotAuthenticated."""
        self._refresh()
        id, secret = parted(token or "") or (self._nobody.id, b"")
        key = self._keys.get(id, self._nobody)
        if not key.opened_by(secret) or not key.good(self._now()):
            raise NotAuthenticated(given=bool(token))
        return key

    def recheck(self, key: ApiKey | None) -> None:
        """Checks a caller that was admitted some time ago. Raises NotAuthenticated if it would not be any more."""
        self._refresh()
        known = None if key is None else self._keys.get(key.id)
        if self._keys and (known is None or not known.good(self._now())):
            raise NotAuthenticated(given=key is not None)

    def known(self, id: KeyId) -> ApiKey | None:
        """A key that was created, valid or not."""
        self._refresh()
        return self._keys.get(id)

    @property
    def version(self) -> int:
        """A number that changes with `keys`."""
        self._refresh()
        return self._version

    @property
    def keys(self) -> list[ApiKey]:
        """All that were created, as they are known here."""
        self._refresh()
        return [*self._keys.values()]

    def named(self, id: str) -> str:
        """A key's name by its id; '' for none, the id itself for one that is not known any more."""
        key = self.known(KeyId(id)) if id else None
        return id if key is None else key.name

    # Managing them: for operators; blocks on the file

    def all(self) -> list[ApiKey]:
        """Also those that are revoked, oldest first, with what was used until the last flush. Raises ConfigError."""
        return [] if self._folder is None else KeyStore(self._folder).all()

    def create(self, name: str, limits: KeyLimits, expires: float | None, priority: Priority, role: KeyRole) -> tuple[ApiKey, str]:
        """A new key and its token, which is kept nowhere. Raises ConfigError."""
        if self._folder is None:
            raise ConfigError("this server keeps no keys: it ends with the command that runs it")
        return KeyStore(self._folder).create(name, self._now(), limits, expires, priority, role)

    def revoke(self, id: str) -> ApiKey:
        """Returns the key as it was. Raises ConfigError if there is none, or it is revoked already."""
        if self._folder is None:
            raise ConfigError("this server keeps no keys")
        return msgspec.structs.replace(KeyStore(self._folder).revoke(id, self._now()), revoked=int(self._now()))

    def used(self, key: KeyId, *, requests: int = 0, prompt: int = 0, completion: int = 0) -> None:
        if not key:
            return
        use = self._uses.setdefault(key, Use())
        use.requests += requests
        use.prompt_tokens += prompt
        use.completion_tokens += completion
        use.last = self._now()

    def used_elsewhere(self, uses: Mapping[KeyId, Use]) -> None:
        """What a gateway has recorded."""
        self._put_back(uses)

    def flush(self) -> None:
        """Writes the recorded use; if that fails, it is kept for the next time."""
        if not self._written(uses := self._taken()):
            self._put_back(uses)

    async def keep(self) -> None:
        """Flushes until cancelled, and then once more."""
        try:
            while True:
                await asyncio.sleep(FLUSH)
                if not await asyncio.to_thread(self._written, uses := self._taken()):
                    self._put_back(uses)
        finally:
            self.flush()
            if self._store is not None:
                self._store.close()

    def _taken(self) -> dict[KeyId, Use]:
        uses, self._uses = self._uses, {}
        return uses

    def _put_back(self, uses: Mapping[KeyId, Use]) -> None:
        for key, use in uses.items():
            self.used(key, requests=use.requests, prompt=use.prompt_tokens, completion=use.completion_tokens)

    def _written(self, uses: dict[KeyId, Use]) -> bool:
        try:
            if uses and self._store is not None:
                self._store.add(uses)
        except (OSError, ConfigError, sqlite3.Error) as error:
            log.warning("what keys were used for cannot be written down now", reason=str(error))
            return False
        return True

    def _refresh(self) -> None:
        now = self._now()
        if 0 <= now - self._looked < REFRESH:
            return
        self._looked = now
        try:
            self._look()
        except (OSError, ConfigError, sqlite3.Error) as error:
            log.error("the keys cannot be read; those that are known go on being good", reason=str(error))

    def _look(self) -> None:
        if self._store is not None and (version := self._store.version()) != self._version:
            self._keys = {key.id: key for key in self._store.all()}
            self._version = version
