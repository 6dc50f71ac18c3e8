"""Fetches that were stopped or killed, disks that fill up, and who fetches on a machine."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from shoal.control.protobuf import encode
from shoal.models.locks import lock
from shoal.models.manifest import Manifest
from shoal.models.ranges import GRAIN
from shoal.node import fetch
from shoal.node.fetch import Fetcher
from shoal.node.host_environment import HostEnvironment
from shoal.node.share import Share
from shoal.transport.base import FrameStream
from shoal.wire import messages
from tests.support.http import eventually
from tests.support.share import CONTENT, FILE, HASH, REFERENCE, brought, dying_later, holding, left, noted, order, played, well


def test_a_fetch_that_was_stopped_goes_on_where_it_was(machine: HostEnvironment, tmp_path: Path):
    never = asyncio.Event()

    async def hand(stream: FrameStream, asked: messages.Fetch, before: list[range]) -> None:
        if asked.offset == 2 * GRAIN:
            await never.wait()
        await well(stream, asked, before)

    async def scenario() -> None:
        async with holding(hand) as first, holding() as second:
            fetching = asyncio.ensure_future(Fetcher(machine, Share(), tmp_path).fill(order(first.peer())))
            await eventually(lambda: noted(tmp_path) == [[0, 2 * GRAIN]])
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
                await eventually(lambda: len(noted(tmp_path)) == 2 or process.poll() is not None)
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

    monkeypatch.setattr("shoal.models.part.PartialFile.write", full)

    async def scenario() -> None:
        async with holding() as holder:
            peers = fetch.peers_of(order(holder.peer()))
            with pytest.raises(OSError, match="No space left"):
                await Fetcher(machine, Share(), tmp_path).fetch(Manifest(REFERENCE, (FILE,)), FILE, peers)
            assert not peers[0].lost

    played(scenario())
