"""Model files between nodes: what is handed out, and how they are drawn from peers that are well, ill, or lie."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, cast

import msgspec
import pytest

from shoal.config import NodeSettings
from shoal.control import messages as control
from shoal.control.protobuf import encode
from shoal.errors import FetchError, ProtocolError, RemoteProtocolError, UserError
from shoal.models.locks import lock
from shoal.models.manifest import Manifest, ModelFile, manifest
from shoal.models.ranges import GRAIN
from shoal.models.weights import open_spec
from shoal.node import fetch, share
from shoal.node.fetch import Fetcher
from shoal.node.holding import PulledModel
from shoal.node.host_environment import HostEnvironment
from shoal.node.links import greeted
from shoal.node.share import ABSENT, BUSY, FRAME, Share
from shoal.security.authority import Authority
from shoal.security.certificates import Role
from shoal.transport import memory, tcp
from shoal.transport.base import FrameStream
from shoal.wire import messages
from shoal.wire.frame import HEADER, MAGIC, MAX_BODY, VERSION, Frame, Kind
from tests.support import tiny
from tests.support.gguf_split import split
from tests.support.gguf_writer import write_model

CONTENT = Random(1).randbytes(5 * GRAIN // 2 + 7)
"""Three ranges."""
HASH = hashlib.sha256(CONTENT).hexdigest()
FILE = ModelFile("model.gguf", len(CONTENT), HASH)
REFERENCE = "/not/here/model.gguf"


def played(scenario: Coroutine[Any, Any, Any]) -> Any:
    """One that hangs fails."""

    async def bounded() -> Any:
        async with asyncio.timeout(30):
            return await scenario

    return asyncio.run(bounded())


async def until(what: Callable[[], bool]) -> None:
    """Bounded by `played`."""
    while not what():  # noqa: ASYNC110 - another process, or the other side of a socket
        await asyncio.sleep(0.002)


def noted(cache: Path) -> Any:
    """Which ranges of an interrupted fetch are here."""
    notes = list(cache.glob("parts/*.ranges"))
    return msgspec.json.decode(notes[0].read_bytes()) if notes else []


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "there" / "a model.gguf"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def machine() -> Iterator[HostEnvironment]:
    made = HostEnvironment()
    yield made
    made.close()


# The serving side, over memory and TCP


@asynccontextmanager
async def over_memory(files: Share, ends: list[Exception]) -> AsyncIterator[FrameStream]:
    left, right = memory.pair()

    async def serve() -> None:
        await _serve(right, files, ends)
        await right.close()

    serving = asyncio.ensure_future(serve())
    yield left
    await left.close()
    await serving


@asynccontextmanager
async def over_tcp(files: Share, ends: list[Exception]) -> AsyncIterator[FrameStream]:
    listener = await tcp.listen("127.0.0.1", 0, lambda stream: _serve(stream, files, ends))
    left = await tcp.connect("127.0.0.1", listener.port, 5)
    left.trust(FRAME)
    yield left
    await left.close()
    await until(lambda: bool(ends))
    await listener.close()


async def _serve(stream: FrameStream, files: Share, ends: list[Exception]) -> None:
    try:
        await greeted(stream, files)
    except (EOFError, OSError, ProtocolError) as error:
        ends.append(error)


Play = Callable[[Callable[[FrameStream], Awaitable[None]]], Exception]


@pytest.fixture(params=[over_memory, over_tcp], ids=["memory", "tcp"])
def play(request: pytest.FixtureRequest, model: Path) -> Play:
    """Plays a client against a share of the model; how that ended for the share."""

    async def against(client: Callable[[FrameStream], Awaitable[None]]) -> Exception:
        files, ends = Share(), list[Exception]()
        files.add({HASH: model})
        async with request.param(files, ends) as stream:
            await client(stream)
        (end,) = ends
        return end

    return lambda client: played(against(client))


async def ask(stream: FrameStream, sha256: Any, offset: Any, length: Any) -> None:
    await stream.send(Frame(Kind.FETCH, meta=msgspec.msgpack.encode([sha256, offset, length])))


async def refusal(stream: FrameStream) -> str:
    frame = await stream.receive()
    assert frame.kind is Kind.ERROR
    return messages.decode_error(frame.meta).message


@pytest.mark.parametrize("asked", [range(1), range(5, 5 + FRAME), range(GRAIN), range(len(CONTENT) - FRAME - 1, len(CONTENT))])
def test_a_range_comes_in_frames(play: Play, asked: range):
    async def client(stream: FrameStream) -> None:
        for _ in range(2):
            await ask(stream, HASH, asked.start, len(asked))
            got = b""
            while len(got) < len(asked):
                frame = await stream.receive()
                assert (frame.kind, frame.step) == (Kind.FETCH, asked.start + len(got))
                assert 0 < len(frame.body) <= FRAME
                got += bytes(frame.body)
            assert got == CONTENT[asked.start : asked.stop]

    assert isinstance(play(client), EOFError)


@pytest.mark.parametrize(
    "name",
    ["a" * 64, "", "a model.gguf", "../there/a model.gguf", "/etc/passwd", "../../../../etc/passwd", HASH.upper(), HASH + "\0", HASH[:-1]],
)
def test_nothing_but_a_known_hash_finds_a_file(play: Play, name: str):
    async def client(stream: FrameStream) -> None:
        await ask(stream, name, 0, 1)
        assert await refusal(stream) == ABSENT

    assert isinstance(play(client), EOFError)


@pytest.mark.parametrize("offset", [len(CONTENT), len(CONTENT) - 1, 1 << 61])
def test_what_lies_beyond_the_end_is_not_here(play: Play, offset: int):
    async def client(stream: FrameStream) -> None:
        await ask(stream, HASH, offset, 2)
        assert await refusal(stream) == ABSENT

    assert isinstance(play(client), EOFError)


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, -1), (-1, 5), (0, GRAIN + 1), (0, 1 << 60), (1 << 63, 1)])
def test_ranges_that_are_refused(play: Play, offset: int, length: int):
    async def client(stream: FrameStream) -> None:
        await ask(stream, HASH, offset, length)
        assert await refusal(stream) == "no such range"

    assert isinstance(play(client), RemoteProtocolError)


@pytest.mark.parametrize(
    "meta", [b"", b"\xc1", msgspec.msgpack.encode([HASH, "0", 1]), msgspec.msgpack.encode([HASH, 0]), bytes(9000)], ids=range(5)
)
def test_requests_that_are_none(play: Play, meta: bytes):
    async def client(stream: FrameStream) -> None:
        await stream.send(Frame(Kind.FETCH, meta=meta))
        with contextlib.suppress(EOFError, ConnectionError):
            await stream.receive()

    assert isinstance(play(client), RemoteProtocolError)


def test_a_stage_is_not_entered_by_this_door(play: Play):
    async def client(stream: FrameStream) -> None:
        await ask(stream, HASH, 0, 1)
        await stream.receive()
        await stream.send(Frame(Kind.STEP))
        with contextlib.suppress(EOFError, ConnectionError):
            await stream.receive()

    assert isinstance(play(client), RemoteProtocolError)


def test_a_file_that_was_deleted_is_not_here(play: Play, model: Path):
    model.unlink()

    async def client(stream: FrameStream) -> None:
        await ask(stream, HASH, 0, 1)
        assert await refusal(stream) == ABSENT

    assert isinstance(play(client), EOFError)


def test_too_many_are_sent_away(play: Play, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(share, "_CONNECTIONS", 0)

    async def client(stream: FrameStream) -> None:
        await ask(stream, HASH, 0, 1)
        assert await refusal(stream) == BUSY

    assert isinstance(play(client), ConnectionError)


def test_who_does_not_read_is_given_up(play: Play, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(share, "_PATIENCE", 0.05)

    async def client(stream: FrameStream) -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            for _ in range(64):
                await ask(stream, HASH, 0, GRAIN)
            await asyncio.sleep(0.2)

    assert isinstance(play(client), TimeoutError | EOFError | ConnectionError)


def test_a_closed_share_has_nothing(model: Path):
    files = Share(open=False)
    files.add({HASH: model})
    assert files.files == []


# The fetching side, over sockets


class Holder:
    """A peer with the model. `asked`: what was asked of it."""

    def __init__(self, listener: tcp.TcpListener, asked: list[range]) -> None:
        self.port, self.asked, self._listener = listener.port, asked, listener

    def peer(self, *files: int) -> control.Peer:
        return control.Peer(host="127.0.0.1", port=self.port, files=list(files) or [0])


Hand = Callable[[FrameStream, messages.Fetch, list[range]], Awaitable[None]]
"""Answers one request."""


async def well(stream: FrameStream, asked: messages.Fetch, before: list[range], content: bytes = CONTENT) -> None:
    for at in range(asked.offset, asked.offset + asked.length, FRAME):
        await stream.send(Frame(Kind.FETCH, step=at, body=content[at : min(at + FRAME, asked.offset + asked.length)]))


async def forging(stream: FrameStream, asked: messages.Fetch, before: list[range]) -> None:
    await well(stream, asked, before, bytes(len(CONTENT)))


async def dying(stream: FrameStream, asked: messages.Fetch, before: list[range]) -> None:
    """Brings one range, dies within the next."""
    await stream.send(Frame(Kind.FETCH, step=asked.offset, body=CONTENT[asked.offset : asked.offset + 5]))
    raise ConnectionError("dies")


async def dying_later(stream: FrameStream, asked: messages.Fetch, before: list[range]) -> None:
    await (well if len(before) < 2 else dying)(stream, asked, before)


def instead(*frames: Frame) -> Hand:
    async def hand(stream: FrameStream, asked: messages.Fetch, before: list[range]) -> None:
        for frame in frames:
            await stream.send(frame)

    return hand


@asynccontextmanager
async def holding(hand: Hand = well) -> AsyncIterator[Holder]:
    asked: list[range] = []

    async def handler(stream: FrameStream) -> None:
        try:
            while True:
                request = messages.decode_fetch((await stream.receive()).meta)
                asked.append(range(request.offset, request.offset + request.length))
                await hand(stream, request, asked)
        except (EOFError, OSError):
            stream.abort()

    listener = await tcp.listen("127.0.0.1", 0, handler)
    try:
        yield Holder(listener, asked)
    finally:
        await listener.close()


def order(*peers: control.Peer, reference: str = REFERENCE, files: tuple[ModelFile, ...] = (FILE,)) -> control.Load:
    listed = [control.ModelFile(name=f.name, size=f.size, sha256=f.sha256) for f in files]
    return control.Load(model=reference, first_layer=0, end_layer=4, layers=4, files=listed, peers=list(peers))


def brought(cache: Path) -> bytes | None:
    path = Manifest(REFERENCE, (FILE,)).located(range(4), True, True, cache)
    assert path is None or path.is_relative_to(cache)
    return None if path is None else path.read_bytes()


def left(cache: Path) -> list[str]:
    """What lies about besides locks."""
    return [p.name for p in (cache / "parts").iterdir() if p.suffix != ".lock"]


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
        listeners = [await tcp.listen("127.0.0.1", 0, lambda stream, s=s: _serve(stream, s, ends)) for s in shares]
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
    "another offset": instead(Frame(Kind.FETCH, step=1, body=b"x")),
    "nothing": instead(Frame(Kind.FETCH, body=b"")),
    "more than was asked": instead(Frame(Kind.FETCH, body=bytes(FRAME + 1))),
    "a step": instead(Frame(Kind.STEP, body=b"x")),
    "not here": instead(Frame(Kind.ERROR, meta=messages.encode(messages.Error(ABSENT, -1)))),
    "some error": instead(Frame(Kind.ERROR, meta=messages.encode(messages.Error("boom", -1)))),
    "an unreadable error": instead(Frame(Kind.ERROR, meta=b"\xc1")),
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
        header = HEADER.pack(MAGIC, VERSION, Kind.FETCH, 0, 0, 0, 0, 0, asked.offset, MAX_BODY)
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
        listener = await head.listen("127.0.0.1", 0, lambda stream: _serve(stream, files, []))
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
            await stream.send(Frame(Kind.ERROR, meta=messages.encode(messages.Error(BUSY, -1))))
        else:
            await well(stream, asked, before)

    async def scenario() -> None:
        async with holding(hand) as holder:
            await Fetcher(machine, Share(), tmp_path).fill(order(holder.peer()))
            assert brought(tmp_path) == CONTENT

    played(scenario())


def test_a_fetch_that_was_stopped_goes_on_where_it_was(machine: HostEnvironment, tmp_path: Path):
    never = asyncio.Event()

    async def hand(stream: FrameStream, asked: messages.Fetch, before: list[range]) -> None:
        if asked.offset == 2 * GRAIN:
            await never.wait()
        await well(stream, asked, before)

    async def scenario() -> None:
        async with holding(hand) as first, holding() as second:
            fetching = asyncio.ensure_future(Fetcher(machine, Share(), tmp_path).fill(order(first.peer())))
            await until(lambda: noted(tmp_path) == [[0, 2 * GRAIN]])
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
            assert brought(tmp_path) is None
            fetcher = Fetcher(machine, Share(), tmp_path)
            await fetcher.fill(order(second.peer()))
            assert brought(tmp_path) == CONTENT
            assert second.asked == [range(2 * GRAIN, len(CONTENT))]
            assert fetcher.fetched == len(CONTENT) - 2 * GRAIN

    played(scenario())


KILLED = """
import asyncio, sys
from pathlib import Path
from shoal.config import NodeSettings
from shoal.control import messages as control
from shoal.control.protobuf import decoder
from shoal.node.fetch import Fetcher
from shoal.node.host_environment import HostEnvironment
from shoal.node.share import Share
asyncio.run(Fetcher(HostEnvironment(), Share(), Path(sys.argv[1])).fill(decoder(control.Load)(bytes.fromhex(sys.argv[2]))))
"""


@pytest.mark.slow
def test_a_fetch_that_was_killed_goes_on_where_it_was(machine: HostEnvironment, tmp_path: Path):
    never = asyncio.Event()

    async def hand(stream: FrameStream, asked: messages.Fetch, before: list[range]) -> None:
        if asked.offset == GRAIN:
            await never.wait()
        await well(stream, asked, before)

    async def scenario() -> None:
        async with holding(hand) as first, holding() as second:
            wanted = encode(order(first.peer())).hex()
            process = await asyncio.to_thread(
                subprocess.Popen, [sys.executable, "-c", KILLED, str(tmp_path), wanted], stdout=subprocess.DEVNULL
            )
            try:
                await until(lambda: len(noted(tmp_path)) == 2 or process.poll() is not None)
            finally:
                process.send_signal(signal.SIGKILL)
                await asyncio.to_thread(process.wait)
            await Fetcher(machine, Share(), tmp_path).fill(order(second.peer()))
            assert brought(tmp_path) == CONTENT
            assert second.asked == [range(GRAIN, 2 * GRAIN)]

    played(scenario())


def test_what_an_interrupted_fetch_left_may_be_bad(machine: HostEnvironment, tmp_path: Path):
    """As after a power cut: the note says that a range is here, and it is not."""

    async def scenario() -> None:
        (tmp_path / "parts").mkdir()
        (tmp_path / "parts" / f"{HASH}.part").write_bytes(bytes(len(CONTENT)))
        (tmp_path / "parts" / f"{HASH}.ranges").write_bytes(msgspec.json.encode([(0, GRAIN)]))
        async with holding() as holder:
            await Fetcher(machine, Share(), tmp_path).fill(order(holder.peer()))
            assert brought(tmp_path) == CONTENT

    played(scenario())


def test_one_process_of_a_machine_fetches(machine: HostEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "_POLL", 0.01)

    async def scenario() -> None:
        async with holding() as holder:
            fetchers = [Fetcher(machine, Share(), tmp_path) for _ in range(3)]
            with lock(_made(Manifest(REFERENCE, (FILE,)).lock(FILE, tmp_path))):
                filling = asyncio.gather(*(f.fill(order(holder.peer())) for f in fetchers))
                await asyncio.sleep(0.05)
                assert holder.asked == []
            await filling
            assert brought(tmp_path) == CONTENT
            assert len(holder.asked) == 3

    played(scenario())


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path


def test_a_disk_without_room_is_left_to_the_origin_to_tell(machine: HostEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))

    async def scenario() -> None:
        async with holding() as holder:
            await Fetcher(machine, Share(), tmp_path).fill(order(holder.peer()))
            assert (holder.asked, brought(tmp_path)) == ([], None)

    played(scenario())


def test_what_peers_had_begun_is_let_go_once_the_origin_brought_it(machine: HostEnvironment, tmp_path: Path):
    async def scenario() -> None:
        fetcher = Fetcher(machine, Share(), tmp_path)
        async with holding(dying_later) as bad:
            await fetcher.fill(order(bad.peer()))
        assert len(left(tmp_path)) == 2
        place = Manifest(REFERENCE, (FILE,)).home(tmp_path) / FILE.name
        place.parent.mkdir(parents=True)
        place.write_bytes(CONTENT)
        assert fetcher.offer(order()) == [HASH]
        assert left(tmp_path) == []

    played(scenario())


def test_a_disk_that_fails_is_no_peers_fault(machine: HostEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shoal.models.part.Part.write", full)

    async def scenario() -> None:
        async with holding() as holder:
            peers = fetch.peers_of(order(holder.peer()))
            with pytest.raises(OSError, match="No space left"):
                await Fetcher(machine, Share(), tmp_path).fetch(Manifest(REFERENCE, (FILE,)), FILE, peers)
            assert not peers[0].lost

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
            with pytest.raises(FetchError, match="no file of a model"):
                await Fetcher(machine, Share(), tmp_path).fill(order(holder.peer(), files=(ModelFile(name, len(CONTENT), HASH),)))
            assert holder.asked == []

    played(scenario())


def test_of_a_sharded_model_only_what_the_layers_need(machine: HostEnvironment, tmp_path: Path):
    home = tiny.saved(tiny.model("llama"), tmp_path / "model", max_shard_size="60KB")
    listed, files = manifest(str(home), home, directory=tmp_path / "head")
    wanted = order(reference="/not/here", files=listed.files)
    wanted.first_layer, wanted.end_layer = 1, 2

    async def scenario() -> None:
        holder, ends = Share(), list[Exception]()
        holder.add(files)
        listener = await tcp.listen("127.0.0.1", 0, lambda stream: _serve(stream, holder, ends))
        wanted.peers.append(control.Peer(host="127.0.0.1", port=listener.port, files=list(range(len(listed.files)))))
        await Fetcher(machine, Share(), tmp_path / "node").fill(wanted)
        await listener.close()

    played(scenario())
    made = Manifest("/not/here", listed.files)
    place = made.located(range(1, 2), False, False, tmp_path / "node")
    assert place is not None
    have = {p.name for p in place.iterdir()}
    assert {"config.json", "model.safetensors.index.json"} < have < {f.name for f in listed.files}
    assert all((place / name).read_bytes() == (home / name).read_bytes() for name in have)


async def filled(machine: HostEnvironment, wanted: control.Load, files: dict[str, Path]) -> None:
    """An order for a model whose files a peer has, all of them, over a socket."""
    holder = Share()
    holder.add(files)
    listener = await tcp.listen("127.0.0.1", 0, lambda stream: _serve(stream, holder, []))
    wanted.peers.append(control.Peer(host="127.0.0.1", port=listener.port, files=list(range(len(wanted.files)))))
    await Fetcher(machine, Share()).fill(wanted)
    await listener.close()


def test_of_a_gguf_file_in_parts_only_those_that_the_layers_need(machine: HostEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "node"))
    whole = write_model(tmp_path / "m.gguf", tiny.model("llama"), "llama", "q8_0")
    (tmp_path / "parts").mkdir()
    parts = split(whole, tmp_path / "parts", 5)
    listed, files = manifest(str(parts[0]), parts[0], directory=tmp_path / "head")
    wanted = order(reference="/not/here/m-00001-of-00005.gguf", files=listed.files)
    wanted.layers, wanted.first_layer, wanted.end_layer = 3, 2, 3
    wanted.precision, wanted.kv_type, wanted.codec = "auto", "bf16", "raw"

    played(filled(machine, wanted, files))
    model = PulledModel(NodeSettings(threads=1), wanted)
    model.load(range(2, 3))
    assert model.layers == [range(2, 3)]
    model.report(heartbeat := control.Heartbeat())
    assert heartbeat.fetched_from_origin == 0
    have = {p.name for p in Manifest("/not/here", listed.files).home(tmp_path / "node").iterdir()}
    assert {"model.gguf.index.json", "model-00001-of-00005.gguf", "model-00005-of-00005.gguf"} <= have < {f.name for f in listed.files}


def test_layers_of_a_path_that_is_not_here_are_loaded_from_the_cache(
    machine: HostEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "node"))
    home = tiny.saved(tiny.model("llama"), tmp_path / "model", max_shard_size="60KB")
    listed, files = manifest(str(home), home, directory=tmp_path / "head")
    wanted = order(reference="/not/here", files=listed.files)
    spec = open_spec(home)
    wanted.layers, wanted.end_layer = spec.layers, spec.layers
    wanted.precision, wanted.kv_type, wanted.codec = "auto", "bf16", "raw"
    model = PulledModel(NodeSettings(threads=1, runtime="onnxruntime"), wanted)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="no such file"):
        model.load(range(1, 2))

    played(filled(machine, wanted, files))
    model.load(range(1, 2))
    assert model.layers == [range(1, 2)]
    model.report(heartbeat := control.Heartbeat())
    assert heartbeat.fetched_from_origin == 0
