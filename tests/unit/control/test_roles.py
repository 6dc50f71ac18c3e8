"""Who may do what at a protected head's control port, and at a protected node's tensor port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.control.client import ControlClient, describe, dismiss
from shoal.control.messages import (
    ClusterDescription,
    Copied,
    DismissAnswer,
    DismissRequest,
    Follow,
    Heartbeat,
    Join,
    NodeMessage,
)
from shoal.control.server import ControlServer, NodeConnection
from shoal.errors import ClusterError
from shoal.node.host_environment import HostEnvironment
from shoal.security.authority import Authority
from shoal.security.certificates import Role
from shoal.transport.base import FrameStream


class Attentive:
    """Remembers who joined, and sends them home."""

    def __init__(self) -> None:
        self.heard_of: list[NodeMessage] = []
        self.stays = False
        """Whether it keeps the conversation with a standby."""

    def heard(self, conversation: NodeConnection, message: NodeMessage) -> None:
        self.heard_of.append(message)
        if isinstance(message, Join | Follow) and not self.stays:
            conversation.end()

    def hung_up(self, conversation: NodeConnection) -> None: ...

    def describe(self) -> ClusterDescription:
        return ClusterDescription(cluster="m")

    def dismiss(self, request: DismissRequest) -> DismissAnswer:
        return DismissAnswer(done=True)


def at_head(folder: Path, work: Callable[[Attentive, str, Authority], Awaitable[Any]]) -> None:
    async def go() -> None:
        authority, attendant = Authority.open(folder / "authority"), Attentive()
        server = ControlServer(attendant, authority.credentials(Role.HEAD, "head"))
        await server.start("127.0.0.1", 0)
        try:
            await work(attendant, f"127.0.0.1:{server.port}", authority)
        finally:
            await server.stop()

    asyncio.run(go())


@pytest.mark.parametrize("role", [*Role])
@pytest.mark.parametrize(
    ("message", "who", "told"), [(Join(name="anna"), Role.NODE, "not a node's"), (Follow(address="b:1"), Role.HEAD, "not a head's")]
)
def test_nodes_alone_join_and_heads_alone_stand_by(message: NodeMessage, who: Role, told: str, role: Role, tmp_path: Path) -> None:
    async def work(attendant: Attentive, address: str, authority: Authority) -> None:
        client = ControlClient(address, authority.credentials(role, "anna"))
        client.say(message)
        refused = contextlib.nullcontext() if role is who else pytest.raises(ClusterError, match=told)
        with refused:
            async for _ in client.attend(10):
                pass
        await client.close()
        assert attendant.heard_of == ([message] if role is who else [])

    at_head(tmp_path, work)


@pytest.mark.parametrize(
    ("role", "messages"),
    [
        (Role.NODE, [Heartbeat(), Follow(address="b:1")]),  # the leader would give it the key of the cluster's authority
        (Role.NODE, [Heartbeat(), Copied(number=1)]),
        (Role.NODE, [Copied(number=1)]),
        (Role.HEAD, [Follow(address="b:1"), Copied(number=1), Join(name="anna")]),
    ],
)
def test_nobody_becomes_another_by_a_later_message(role: Role, messages: list[NodeMessage], tmp_path: Path) -> None:
    """The last of the messages is not heard."""

    async def work(attendant: Attentive, address: str, authority: Authority) -> None:
        attendant.stays = True
        client = ControlClient(address, authority.credentials(role, "anna"))
        for message in messages:
            client.say(message)
        with pytest.raises(ClusterError):
            async for _ in client.attend(10):
                pass
        await client.close()
        assert attendant.heard_of == messages[:-1]

    at_head(tmp_path, work)


@pytest.mark.parametrize("role", [*Role])
def test_all_members_may_look_and_the_heads_machine_alone_sends_nodes_away(role: Role, tmp_path: Path) -> None:
    async def work(attendant: Attentive, address: str, authority: Authority) -> None:
        credentials = authority.credentials(role, "anna")
        assert (await describe(address, credentials)).cluster == "m"
        assert (await dismiss(address, "b", False, credentials)).done == (role is Role.HEAD)

    at_head(tmp_path, work)


@pytest.mark.parametrize("role", [*Role])
def test_heads_and_nodes_alone_get_to_a_tensor_port(role: Role, tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "authority")
    server, client = (HostEnvironment(authority.credentials(which, "x")) for which in (Role.NODE, role))

    async def go() -> None:
        heard = list[str]()
        came = asyncio.Event()

        async def handler(stream: FrameStream) -> None:
            heard.append(stream.peer)
            came.set()
            await stream.receive()

        listener = await server.listen("127.0.0.1", 0, handler)
        stream = await client.connect("127.0.0.1", listener.port, 10)
        if role not in (Role.HEAD, Role.NODE):
            with pytest.raises((EOFError, ConnectionError)):
                await stream.receive()
        else:
            await asyncio.wait_for(came.wait(), 10)
        await stream.close()
        await listener.close()
        assert bool(heard) == (role in (Role.HEAD, Role.NODE))

    try:
        asyncio.run(go())
    finally:
        server.close()
        client.close()
