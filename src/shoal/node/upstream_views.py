"""The other servers that answer for some models, as those who serve the API report them."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from shoal.observed.event import EventKind
from shoal.observed.models import UNHEARD, UpstreamView
from shoal.telemetry.event_ring import EventRing

log = structlog.get_logger()


class UpstreamViews:
    """Several API workers may report the same: what is known already is told no second time."""

    def __init__(self, events: EventRing, urls: Sequence[str]) -> None:
        self._events = events
        self._views = {url: UpstreamView(url, UNHEARD) for url in urls}

    @property
    def all(self) -> list[UpstreamView]:
        return [*self._views.values()]

    @property
    def models(self) -> list[str]:
        """Names of the models that they have, each once."""
        return [*dict.fromkeys(model.name for view in self._views.values() for model in view.models)]

    def changed(self, view: UpstreamView) -> None:
        before = self._views.get(view.url)
        self._views[view.url] = view
        if before is not None and before.state == view.state:
            return
        if view.state:
            log.warning("an upstream takes no requests", upstream=view.url, reason=view.state)
            self._events.add(EventKind.AWAY, f"the upstream {view.url} takes no requests: {view.state}")
        else:
            names = ", ".join(model.name for model in view.models) or "no model"
            log.info("an upstream takes requests", upstream=view.url, models=names)
            self._events.add(EventKind.BACK, f"the upstream {view.url} takes requests: it has {names}")
