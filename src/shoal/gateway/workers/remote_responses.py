"""The responses that the head keeps, at a gateway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.gateway.endpoints.responses.store import KeptResponse, Responses
from shoal.gateway.workers.operations import Ask, Blocking


class RemoteResponses:
    """A gateway.endpoints.responses.store.Responses. Must be made in the event loop."""

    def __init__(self, keeps: bool, ask: Ask) -> None:
        self.keeps, self._do = keeps, Blocking(ask, Responses)

    def begin(self, response: dict[str, Any], input: Sequence[dict[str, Any]], owner: str = "") -> None:
        self._do("begin", response, input, owner)

    def adopt(self, id: str) -> None:
        self._do("adopt", id)

    def end(self, response: dict[str, Any]) -> None:
        self._do("end", response)

    def get(self, id: str, owner: str = "", runs: bool = False) -> KeptResponse:
        return self._do("get", id, owner, runs)

    def chain(self, id: str, owner: str = "") -> list[KeptResponse]:
        return self._do("chain", id, owner)

    def delete(self, id: str, owner: str = "") -> None:
        self._do("delete", id, owner)
