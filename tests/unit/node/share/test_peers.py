"""Model files drawn from peers that are well, ill, or lie."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from shoal.control import messages as control
from shoal.errors import FetchError
from shoal.models.manifest import ModelFile
from shoal.models.ranges import GRAIN
from shoal.node import fetch
from shoal.node.fetch import Fetcher
from shoal.node.host_environment import HostEnvironment
from shoal.node.share import ABSENT, BUSY, FRAME, Share
from shoal.security.authority import Authority
from shoal.security.certificates import Role
from shoal.transport import tcp
from shoal.transport.base import FrameStream
from shoal.wire import messages
from shoal.wire.frame import HEADER, MAGIC, MAX_BODY, VERSION, Frame, FrameKind
from tests.support.share import (
    CONTENT,
    HASH,
    Hand,
    brought,
    dying,
    dying_later,
    forging,
    holding,
    instead,
    left,
    order,
    played,
    serve,
    well,
)


def test_a_file_comes_from_one_peer(machine: HostEnvironment, tmp_path: Path):
    async def scenario() -> None:
        async with holding() as holder:
            fetcher = Fetcher(machine, files := Share(), tmp_path)
            await fetcher.fill(order(holder.peer()))
            assert brought(tmp_path) == CONTENT
            assert (fetcher.fetched, left(tmp_path)) == (len(CONTENT), [])
            assert sorted(holder.asked, key=lambda r: r.start) == [range(GRAIN), range(GRAIN, 2 * GRAIN), range(2 * GRAIN, len(CONTENT))]
            assert fetcher.offer(order()) == files.files == [HASH]
            await fetcher.fill(order(holder.peer()))
            assert len(holder.asked) == 3

    played(scenario())


def test_a_file_comes_from_several_peers_at_once(machine: HostEnvironment, tmp_path: Path):
    async def scenario() -> None:
        async with holding() as first, holding() as second:
            await Fetcher(machine, Share(), tmp_path).fill(order(first.peer(), second.peer()))
            assert brought(tmp_path) == CONTENT
            assert first.asked
            assert second.asked
            assert len(first.asked) + len(second.asked) == 3

    played(scenario())


def test_what_was_fetched_is_handed_on(machine: HostEnvironment, tmp_path: Path, model: Path):
    """Two nodes fetch from one, a third from both of them."""

    async def scenario() -> None:
        shares = [Share() for _ in range(3)]
        shares[0].add({HASH: model})
        ends: list[Exception] = []
        listeners = [await tcp.listen("127.0.0.1", 0, lambda stream, s=s: serve(stream, s, ends)) for s in shares]
        source, *others = [control.Peer(host="127.0.0.1", port=listener.port, files=[0]) for listener in listeners]
        fetchers = [Fetcher(machine, s, tmp_path / str(i)) for i, s in enumerate(shares)]
        await asyncio.gather(*(f.fill(order(source)) for f in fetchers[1:]))
        assert [f.offer(order()) for f in fetchers[1:]] == [[HASH], [HASH]]
        await Fetcher(machine, Share(), tmp_path / "third").fill(order(*others))
        assert [brought(tmp_path / name) for name in ("1", "2", "third")] == [CONTENT] * 3
        for listener in listeners:
            await listener.close()
        assert all(isinstance(end, EOFError | ConnectionError) for end in ends)

    played(scenario())


BAD_PEERS: dict[str, Hand] = {
    "dies at once": dying,
    "dies later": dying_later,
    "another offset": instead(Frame(FrameKind.FETCH, step=1, body=b"x")),
    "nothing": instead(Frame(FrameKind.FETCH, body=b"")),
    "more than was asked": instead(Frame(FrameKind.FETCH, body=bytes(FRAME + 1))),
    "a step": instead(Frame(FrameKind.STEP, body=b"x")),
    "not here": instead(Frame(FrameKind.ERROR, meta=messages.encode(messages.Error(ABSENT, -1)))),
    "some error": instead(Frame(FrameKind.ERROR, meta=messages.encode(messages.Error("boom", -1)))),
    "an unreadable error": instead(Frame(FrameKind.ERROR, meta=b"\xc1")),
}


@pytest.mark.parametrize("hand", BAD_PEERS.values(), ids=BAD_PEERS.keys())
def test_the_ranges_of_a_bad_peer_go_to_the_others(hand: Hand, machine: HostEnvironment, tmp_path: Path):
    async def scenario() -> None:
        async with holding(hand) as bad, holding() as good:
            await Fetcher(machine, Share(), tmp_path).fill(order(bad.peer(), good.peer()))
            assert brought(tmp_path) == CONTENT
            assert bad.asked

    played(scenario())


@pytest.mark.parametrize("hand", BAD_PEERS.values(), ids=BAD_PEERS.keys())
def test_bad_peers_alone_bring_nothing_and_break_nothing(hand: Hand, machine: HostEnvironment, tmp_path: Path):
    async def scenario() -> None:
        async with holding(hand) as bad:
            await Fetcher(machine, Share(), tmp_path).fill(order(bad.peer()))
            assert brought(tmp_path) is None

    played(scenario())


def test_a_peer_that_announces_more_than_a_frame_is_given_up_before_room_is_made(machine: HostEnvironment, tmp_path: Path):
    async def announcing(stream: FrameStream, asked: messages.Fetch, before: list[range]) -> None:
        header = HEADER.pack(MAGIC, VERSION, FrameKind.FETCH, 0, 0, 0, 0, 0, asked.offset, MAX_BODY)
        cast(Any, stream)._protocol.transport.write(header)

    async def scenario() -> None:
        async with holding(announcing) as bad, asyncio.timeout(10):  # less than a frame is waited for
            await Fetcher(machine, Share(), tmp_path).fill(order(bad.peer()))
            assert brought(tmp_path) is None

    played(scenario())


def test_a_peer_that_falls_silent_is_given_up(machine: HostEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "_TIMEOUT", 0.2)

    async def scenario() -> None:
        async with holding(instead()) as silent, holding() as good:
            await Fetcher(machine, Share(), tmp_path).fill(order(silent.peer(), good.peer()))
            assert brought(tmp_path) == CONTENT

    played(scenario())


@pytest.mark.parametrize("said", [Role.HEAD, Role.NODE])
def test_a_protected_head_is_asked_as_the_head(said: Role, model: Path, tmp_path: Path):
    authority = Authority.open(tmp_path / "authority")
    head, node = (HostEnvironment(authority.credentials(role, "x")) for role in (Role.HEAD, Role.NODE))

    async def scenario() -> None:
        files = Share()
        files.add({HASH: model})
        listener = await head.listen("127.0.0.1", 0, lambda stream: serve(stream, files, []))
        peer = control.Peer(host="127.0.0.1", port=listener.port, files=[0], head=said is Role.HEAD)
        await Fetcher(node, Share(), tmp_path).fill(order(peer))
        await listener.close()
        assert brought(tmp_path) == (CONTENT if said is Role.HEAD else None)

    played(scenario())
    head.close()
    node.close()


def test_a_peer_that_is_not_there(machine: HostEnvironment, tmp_path: Path):
    async def scenario() -> None:
        async with holding() as gone:
            pass
        async with holding() as good:
            await Fetcher(machine, Share(), tmp_path).fill(order(gone.peer(), good.peer()))
            assert brought(tmp_path) == CONTENT

    played(scenario())


@pytest.mark.parametrize("forgers", [[0], [1], [0, 1]])
def test_what_is_forged_never_takes_the_files_place(forgers: list[int], machine: HostEnvironment, tmp_path: Path):
    """One peer alone, then the other, has to bring it all."""

    async def scenario() -> None:
        async with holding(forging if 0 in forgers else well) as first, holding(forging if 1 in forgers else well) as second:
            await Fetcher(machine, Share(), tmp_path).fill(order(first.peer(), second.peer()))
            assert brought(tmp_path) == (None if len(forgers) == 2 else CONTENT)
            assert left(tmp_path) == []

    played(scenario())


def test_a_busy_peer_is_asked_again(machine: HostEnvironment, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "_FIRST_DELAY", 0.01)
    busy = [True] * 5

    async def hand(stream: FrameStream, asked: messages.Fetch, before: list[range]) -> None:
        if busy:
            busy.pop()
            await stream.send(Frame(FrameKind.ERROR, meta=messages.encode(messages.Error(BUSY, -1))))
        else:
            await well(stream, asked, before)

    async def scenario() -> None:
        async with holding(hand) as holder:
            await Fetcher(machine, Share(), tmp_path).fill(order(holder.peer()))
            assert brought(tmp_path) == CONTENT

    played(scenario())


def test_a_node_that_does_not_share_does_not_fetch(machine: HostEnvironment, tmp_path: Path):
    async def scenario() -> None:
        async with holding() as holder:
            await Fetcher(machine, Share(open=False), tmp_path).fill(order(holder.peer()))
            assert (holder.asked, brought(tmp_path)) == ([], None)

    played(scenario())


@pytest.mark.parametrize("name", ["../../outside.gguf", "/tmp/outside.gguf", "a/b.gguf"])
def test_an_order_cannot_write_outside_the_cache(name: str, machine: HostEnvironment, tmp_path: Path):
    async def scenario() -> None:
        async with holding() as holder:
            with pytest.raises(FetchError, match="not a file of a model"):
                await Fetcher(machine, Share(), tmp_path).fill(order(holder.peer(), files=(ModelFile(name, len(CONTENT), HASH),)))
            assert holder.asked == []

    played(scenario())
