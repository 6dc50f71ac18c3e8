"""Who serves the API: the head's own process, or several worker processes."""

from __future__ import annotations

import logging
import socket
from typing import Protocol

from shoal.cli.show import err
from shoal.config import HeadSettings
from shoal.errors import ConfigError
from shoal.gateway.app import create_app
from shoal.gateway.server import ApiServer
from shoal.gateway.workers.server import TokenizerFiles
from shoal.launch.api_workers import ApiWorkers
from shoal.launch.engines import HeadEngines
from shoal.launch.upstream_keys import upstream_keys
from shoal.node.head import Head
from shoal.node.model_keeper import ModelKeeper


class Api(Protocol):
    @property
    def port(self) -> int: ...
    async def serve(self) -> None:
        """Runs until stop() is called."""
        ...

    async def finish(self) -> None:
        """Accepts no more requests, and waits until the current ones are answered."""
        ...

    @property
    def inside(self) -> int:
        """Unfinished requests."""
        ...

    def stop(self) -> None: ...


def api_of(head: Head, keeper: ModelKeeper, settings: HeadSettings, address: socket.socket) -> Api:
    engines, api = HeadEngines(head, keeper), settings.served_api
    if settings.api.api_workers > 1:
        if not hasattr(socket, "AF_UNIX"):
            raise ConfigError(
                "--api-workers needs Unix sockets, which this system does not have; leave it out and the head serves the API itself"
            )
        verbose = logging.getLogger("shoal").isEnabledFor(logging.INFO)

        def files(name: str) -> TokenizerFiles:
            offer = head.engines[name].offer
            return TokenizerFiles(offer.model.path, offer.engine.chat_template_file)

        return ApiWorkers(engines, files, api, address, "text" if err.log is None else "json", verbose, head.operator)
    upstreams = None
    if api.upstreams:
        from shoal.gateway.upstream.upstreams import Upstreams

        upstreams = Upstreams(api, upstream_keys(api), engines.upstream_changed)
    return ApiServer(create_app(engines, api, operator=head.operator, upstreams=upstreams), address, settings.api)
