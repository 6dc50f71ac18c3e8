"""A process that serves the API using the head's engines. `shoal up` and `shoal serve` start it; it imports no computing code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import structlog

from shoal.cli.log_format import LogFormat
from shoal.cli.logs import log_to_stderr
from shoal.cli.loop import on_signal, run
from shoal.errors import ShoalError
from shoal.gateway.app import create_app
from shoal.gateway.server import ApiServer
from shoal.gateway.workers.client import RemoteEngines
from shoal.launch.tokenizers import opened
from shoal.launch.upstreams import upstreams_of
from shoal.settings import variable

log = structlog.get_logger()


async def serve(path: Path, address: socket.socket) -> None:
    """Runs until the head ends it or is gone."""
    engines = await RemoteEngines.connect(path, opened)
    settings = engines.settings
    upstreams = upstreams_of(settings, engines, engines.server)
    app = create_app(engines, settings, limiter=engines.limiter, operator=engines.operator, upstreams=upstreams)
    api = ApiServer(app, address, settings)
    on_signal(signal.SIGTERM, api.stop)
    hearing, serving = asyncio.create_task(engines.run()), asyncio.create_task(api.serve())
    finishing = asyncio.create_task(engines.finish(api.finish))
    await asyncio.wait({hearing, serving}, return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        # The same as when a head that serves the API itself is killed: connections end without a last message, and clients that named
        # their answers come back for them.
        if (error := hearing.exception()) is not None:
            log.error("an API worker cannot go on", reason=str(error))
        os._exit(1)
    finishing.cancel()
    (failed,) = await asyncio.gather(finishing, return_exceptions=True)
    await engines.close()
    await hearing
    serving.result()
    if isinstance(failed, Exception):
        raise failed


def main() -> None:
    level = logging.INFO if variable("SHOAL_VERBOSE") == "1" else logging.WARNING
    log_to_stderr(level, LogFormat(variable("SHOAL_LOG_FORMAT") or "text"))
    path, listener = Path(sys.argv[1]), int(sys.argv[2])
    try:
        with socket.socket(fileno=listener) as address:
            run(serve(path, address))
    except (ShoalError, OSError, EOFError) as error:
        log.error("an API worker could not start", reason=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
