"""The witness: a small server on a machine of its own, which grants each cluster's lease to one head at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import grpc
import grpc.aio
import msgspec
import structlog

from shoal.address import join_host_port, listening_socket
from shoal.control.channel import OPTIONS, role_at
from shoal.errors import ConfigError, QueueFull
from shoal.leadership.ledger import WitnessLedger
from shoal.leadership.witness_protocol import METHODS, MOST_BYTES, SERVICE, State
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials

log = structlog.get_logger()

_OPTIONS = [*OPTIONS, ("grpc.max_receive_message_length", MOST_BYTES), ("grpc.max_concurrent_streams", 64)]
_AT_ONCE = 256  # requests; more are refused


class WitnessServer:
    def __init__(self, ledger: WitnessLedger, credentials: Credentials | None = None) -> None:
        """With credentials: serves over TLS, to the heads of the cluster that they are of."""
        self._ledger, self._credentials = ledger, credentials
        self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_AT_ONCE)
        handlers = {name: self._handler(name, kind) for name, kind in METHODS.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Raises ConfigError if the address cannot be used."""
        if port:  # gRPC's own message does not say why
            listening_socket(host, port).close()
        address = join_host_port(host.replace("%", "%25"), port)
        try:
            if self._credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, self._credentials.grpc_server_credentials())
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {join_host_port(host, port)} for heads; choose another --port") from error
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(grace=1.0)

    def _handler(self, name: str, kind: type[Any]) -> Any:
        work: Callable[[Any], State] = getattr(self._ledger, name.lower())

        async def answer(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            if self._credentials is not None and role_at(context) is not Role.HEAD:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "only a head of the cluster may ask for its lease")
            try:
                asked = msgspec.json.decode(data, type=kind)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"this is no request for a lease: {error}")
                raise
            try:
                state = work(asked)
            except QueueFull:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "this witness knows as many clusters as it can; use another one")
                raise
            except ConfigError as error:
                log.error("a grant cannot be written, and was not made", cluster=asked.cluster, error=str(error))
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the witness cannot write the grant: {error}")
                raise
            if name in ("Acquire", "Release") and state.granted:
                log.info(
                    "the lease was " + ("granted" if name == "Acquire" else "given up"),
                    cluster=asked.cluster,
                    term=state.term,
                    head=state.address,
                )
            return msgspec.json.encode(state)

        return cast(Any, grpc).unary_unary_rpc_method_handler(answer)
