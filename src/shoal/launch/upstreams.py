"""The other servers that answer for some models, as whoever serves the API asks them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.config import ApiSettings
from shoal.gateway.engines import Engines
from shoal.launch.upstream_keys import upstream_keys

if TYPE_CHECKING:
    from shoal.gateway.upstream.upstreams import Upstreams


def upstreams_of(settings: ApiSettings, engines: Engines, id: str = "") -> Upstreams | None:
    """None: there are none. id: see Upstreams. Raises ConfigError."""
    if not settings.upstreams:
        return None
    from shoal.gateway.upstream.upstreams import Upstreams  # an HTTP client, which takes time to load

    return Upstreams(settings, upstream_keys(settings), engines.upstream_changed, id)
