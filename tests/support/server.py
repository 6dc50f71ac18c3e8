"""An application behind a real socket, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from shoal.gateway.server import listening


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Its URL; it is stopped in any case."""
    with listening("127.0.0.1", 0) as address:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[address])))
        thread.start()
        try:
            yield f"http://127.0.0.1:{address.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
