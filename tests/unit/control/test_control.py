"""The control port."""

from __future__ import annotations

import asyncio

from shoal.control.client import describe
from shoal.control.messages import ClusterDescription, DismissAnswer, DismissRequest, NodeMessage
from shoal.control.server import ControlServer, NodeConnection


class Deaf:
    def heard(self, conversation: NodeConnection, message: NodeMessage) -> None: ...
    def hung_up(self, conversation: NodeConnection) -> None: ...

    def describe(self) -> ClusterDescription:
        return ClusterDescription(cluster="m")

    def dismiss(self, request: DismissRequest) -> DismissAnswer:
        return DismissAnswer()


def test_a_head_on_an_address_of_the_network_answers_its_own_machine_on_the_loopback():
    async def ask() -> str:
        server = ControlServer(Deaf())
        await server.start("127.0.0.2", 0)  # as good as any that is not 127.0.0.1
        try:
            return (await describe(f"127.0.0.1:{server.port}")).cluster
        finally:
            await server.stop()

    assert asyncio.run(ask()) == "m"
