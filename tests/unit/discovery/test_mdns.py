"""What is particular to multicast DNS: interfaces, and two heads that chose one name."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from shoal.discovery.advert import Advert
from shoal.discovery.mdns import MdnsRegistry
from shoal.errors import ClusterError, ConfigError

REEF = Advert(cluster="reef", host="127.0.0.1", control_port=7420)


def test_an_interface_of_another_machine_is_a_setting_at_fault():
    async def scenario() -> None:
        registry = MdnsRegistry(["203.0.113.9"])
        with pytest.raises(ConfigError, match=r"203\.0\.113\.9 is not an address of this machine"):
            await registry.find(None, 1)
        with pytest.raises(ConfigError, match=r"203\.0\.113\.9 is not an address of this machine"):
            await registry.announce(REEF)
        await registry.close()

    asyncio.run(scenario())


@pytest.mark.real
@pytest.mark.slow
def test_two_heads_of_one_name_both_answer_and_their_addresses_are_told():
    async def scenario() -> None:
        service = f"_sh-{uuid.uuid4().hex[:10]}._tcp.local."
        heads = [MdnsRegistry(["127.0.0.1"], service=service) for _ in range(2)]
        node = MdnsRegistry(["127.0.0.1"], service=service)
        try:
            await asyncio.gather(
                *(head.announce(Advert(cluster="reef", host="127.0.0.1", control_port=7420 + i)) for i, head in enumerate(heads))
            )
            with pytest.raises(ClusterError, match=r"(?s)2 clusters are called reef.*127\.0\.0\.1:7420.*127\.0\.0\.1:7421"):
                await node.find("reef", 5)
        finally:
            await asyncio.gather(*(registry.close() for registry in (*heads, node)))

    asyncio.run(asyncio.wait_for(scenario(), 20))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_head_on_loopback_is_found_by_nodes_of_this_machine_with_the_interfaces_that_are_chosen_by_default(host: str):
    async def scenario() -> None:
        service = f"_sh-{uuid.uuid4().hex[:10]}._tcp.local."
        head, node = MdnsRegistry(service=service), MdnsRegistry(service=service)
        try:
            await head.announce(REEF.at(host))
            assert await node.find("reef", 5) == REEF.at(host)
        finally:
            await asyncio.gather(head.close(), node.close())

    asyncio.run(asyncio.wait_for(scenario(), 20))
