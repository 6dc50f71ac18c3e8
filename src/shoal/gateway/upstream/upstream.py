"""One other server: what is known of it."""

from __future__ import annotations

import asyncio
from time import monotonic

from shoal.observed.models import UNHEARD, UpstreamModel, UpstreamView

_LACKING = 300.0
"""Seconds for which an endpoint that it does not have is not asked for."""


class Upstream:
    def __init__(self, url: str, key: str = "") -> None:
        """url: its base, like http://other:8000/v1. key: what it is asked with; '': it needs none."""
        self.url, self._key = url, key
        self.models: dict[str, UpstreamModel] = {}
        """By name. They stay known while it is away."""
        self.away = UNHEARD
        """Why it does not say which models it has; ''."""
        self.heard = False
        """Whether it ever said so."""
        self.doubts = 0
        """Questions in a row that it left without an answer."""
        self.ejected: dict[str, str] = {}
        """Why it gets no requests for a model, by the model."""
        self.lacking: dict[str, float] = {}
        """Paths of endpoints that it does not have, and when it is asked again, by the clock of `monotonic`."""
        self.doubted = asyncio.Event()
        """Set when a request could not reach it."""

    @property
    def id(self) -> str:
        """By which it is known in Via headers; '' if it names none."""
        return next((model.via[0] for model in self.models.values() if model.via), "")

    @property
    def state(self) -> str:
        """Why it takes no requests, or not all; ''."""
        return self.away or "; ".join(f"{model}: {why}" for model, why in self.ejected.items())

    @property
    def view(self) -> UpstreamView:
        return UpstreamView(self.url, self.state, [*self.models.values()])

    def offers(self, model: str, path: str) -> bool:
        """Whether it takes requests for a model at an endpoint now."""
        return not self.away and model in self.models and not self.lacks(path)

    def lacks(self, path: str) -> bool:
        """Whether it said lately that it has no such endpoint."""
        return self.lacking.get(path, 0.0) > monotonic()

    def without(self, path: str) -> None:
        """It says that it has no such endpoint."""
        self.lacking[path] = monotonic() + _LACKING

    def at(self, path: str) -> str:
        """The URL of an endpoint. path: as here, which begins with /v1."""
        return self.url + path.removeprefix("/v1")

    def without_key(self, text: str) -> str:
        """What it said, for a log: some servers repeat the key that they refuse."""
        return text.replace(self._key, "[key]") if self._key else text

    def credentials(self, path: str) -> dict[str, str]:
        """The headers with its key."""
        if not self._key:
            return {}
        bearer = {"Authorization": f"Bearer {self._key}"}
        return {**bearer, "x-api-key": self._key} if path.startswith("/v1/messages") else bearer
