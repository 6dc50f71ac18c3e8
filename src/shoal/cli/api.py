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
from shoal.launch.api_workers import ApiWorkers, GatewayPort
from shoal.launch.engines import HeadEngines
from shoal.launch.upstreams import upstreams_of
from shoal.node.head import Head
from shoal.node.model_keeper import ModelKeeper
from shoal.text.tokenizer_parts import TokenizerFiles


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
    if settings.api.api_workers > 1 or settings.gateway_port:
        if not hasattr(socket, "AF_UNIX"):
            raise ConfigError(
                "--api-workers and --gateway-port need Unix sockets, which this system does not have; leave them out and the head serves "
                "the API itself"
            )
        verbose = logging.getLogger("shoal").isEnabledFor(logging.INFO)

        def files(name: str) -> TokenizerFiles:
            offer = head.engines[name].offer
            return TokenizerFiles(offer.model.path, offer.engine.chat_template_file)

        credentials = head.credentials
        context = credentials.server_context() if credentials is not None else None
        gateways = GatewayPort(settings.host, settings.gateway_port, context) if settings.gateway_port else None
        return ApiWorkers(engines, files, api, address, "text" if err.log is None else "json", verbose, head.operator, gateways)
    app = create_app(engines, api, operator=head.operator, upstreams=upstreams_of(api, engines))
    return ApiServer(app, address, settings.api)
