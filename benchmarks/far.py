"""Links that take their time: the tensors of a cluster go through proxies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from shoal.control import messages as control
from shoal.node.coordinator import Coordinator
from shoal.node.host_environment import HostEnvironment
from tests.support.proxy import Proxy


class _Door:
    """What the head listens at, by way of a proxy."""

    def __init__(self, listener: Any, proxy: Proxy) -> None:
        self._listener, self._proxy = listener, proxy
        self.port = proxy.port

    async def close(self) -> None:
        await self._listener.close()


@contextlib.contextmanager
def delayed(seconds: float) -> Iterator[None]:
    """For a cluster that is started inside, with its head in this process: each way between stages, and between them and the head, takes that
    long."""
    proxies: list[Proxy] = []
    join, listen = Coordinator._join, HostEnvironment.listen

    def proxied(port: int) -> Proxy:
        proxies.append(Proxy("127.0.0.1", 0, ("127.0.0.1", port), seconds))
        return proxies[-1]

    def joined(self: Coordinator, conversation: Any, message: control.Join) -> None:
        message.tensor_port = proxied(message.tensor_port).port
        join(self, conversation, message)

    async def listening(self: HostEnvironment, *given: Any) -> Any:
        listener = await listen(self, *given)
        return _Door(listener, proxied(listener.port))

    try:
        with patch.object(Coordinator, "_join", joined), patch.object(HostEnvironment, "listen", listening):
            yield
    finally:
        for proxy in proxies:
            proxy.close()
