"""What gateways get of the head's machine: tokenizers' parts, keys, kept responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from shoal.config import ApiSettings
from shoal.errors import CapacityError
from shoal.gateway.auth.key import ApiKey
from shoal.gateway.auth.keyring import Keyring
from shoal.gateway.endpoints.responses.store import Bounds, KeptResponse, ResponseStore
from shoal.gateway.engine import Engine
from shoal.text.tokenizer_parts import TokenizerParts


class HeadHome:
    def __init__(self, settings: ApiSettings, cut: Callable[[str], TokenizerParts], api: str) -> None:
        """cut: the parts of a model's tokenizer; blocks. api: where the head's own API is, for people. Raises ConfigError if the keys cannot be
        read."""
        self.settings, self.api = settings, api
        self.keyring = Keyring(settings.data_folder)
        self._responses = ResponseStore(settings.data_folder, Bounds.of(settings))
        self._cut = cut
        self._parts: dict[str, TokenizerParts] = {}
        self._running: dict[str, object] = {}
        """Unfinished responses, and the gateways that run them."""
        self._version = -1

    async def parts(self, engine: Engine) -> TokenizerParts:
        """Of an engine's tokenizer. Raises ShoalError."""
        if (known := self._parts.get(engine.identity)) is None:
            try:
                known = self._parts[engine.identity] = await asyncio.to_thread(self._cut, engine.name)
            except OSError as error:
                raise CapacityError(f"the files of '{engine.name}' cannot be read: {error.strerror or error}") from error
        return known

    @property
    def keys(self) -> list[ApiKey]:
        """As gateways are told of them: without what they were used for."""
        blank: dict[str, Any] = {"last_used": None, "requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
        return [msgspec.structs.replace(key, **blank) for key in self.keyring.keys]

    @property
    def keys_changed(self) -> bool:
        """Whether keys may have changed since this was asked last."""
        version, self._version = self._version, self.keyring.version
        return version != self._version

    def responses_of(self, gateway: object) -> GatewayResponses:
        return GatewayResponses(self._responses, self._running, gateway)


class GatewayResponses:
    """A gateway.endpoints.responses.store.Responses, as one gateway uses it."""

    def __init__(self, store: ResponseStore, running: dict[str, object], gateway: object) -> None:
        self._store, self._running, self._gateway = store, running, gateway
        self.keeps = store.keeps

    def begin(self, response: dict[str, Any], input: Sequence[dict[str, Any]], owner: str = "") -> None:
        self._store.begin(response, input, owner)
        self._running[response["id"]] = self._gateway

    def adopt(self, id: str) -> None:
        self._store.adopt(id)
        self._running[id] = self._gateway

    def end(self, response: dict[str, Any]) -> None:
        self._store.end(response)
        self._running.pop(response["id"], None)

    def get(self, id: str, owner: str = "", runs: bool = False) -> KeptResponse:
        return self._store.get(id, owner, runs)

    def chain(self, id: str, owner: str = "") -> list[KeptResponse]:
        return self._store.chain(id, owner)

    def delete(self, id: str, owner: str = "") -> None:
        self._store.delete(id, owner)
        self._running.pop(id, None)

    def lose(self) -> None:
        """The gateway is gone: what it ran does not end, unless another one adopts it. Blocks. Raises CapacityError."""
        lost = [id for id, gateway in [*self._running.items()] if gateway is self._gateway]
        for id in lost:
            del self._running[id]
        if lost:
            self._store.lose(lost)
