"""Fetches a model's files, and packed ones, from peers that have them: ranges from several peers at once, over two connections each.

If a peer fails or sends something invalid, it is asked no more, and its ranges go to the others. The whole file is hashed
before it is put in place. Nothing here fails a load: what peers do not deliver, the model's origin may.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from shoal.address import join_host_port
from shoal.control import messages as control
from shoal.errors import FetchError, ProtocolError, RemoteProtocolError
from shoal.folders import cache_dir
from shoal.models.hashes import known_hash
from shoal.models.locks import lock
from shoal.models.manifest import Manifest, adopt
from shoal.models.model_file import ModelFile
from shoal.models.part import PartialFile, discard
from shoal.node.environment import Environment
from shoal.node.packing import packing_of
from shoal.node.share import ABSENT, BUSY, FRAME, Share
from shoal.retry import Backoff
from shoal.security.certificates import Role
from shoal.transport.base import FrameStream
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind

log = structlog.get_logger()

T = TypeVar("T")
_CREW, _CONNECTIONS = 4, 2  # peers at once, connections to each
_TIMEOUT = 20.0  # seconds to connect, and for each frame
_FIRST_DELAY, _MOST_DELAY, _BUSY_TRIES = 0.2, 2.0, 60
_POLL = 0.2  # seconds between checks whether another process is done with the same file


@dataclass(eq=False)
class FilePeer:
    host: str
    port: int
    files: set[str]
    """Hashes of the files that it has."""
    role: Role = Role.NODE
    lost: bool = False


class _Sent(Exception):
    """The peer refused: it is busy, or does not have the file."""


def manifest_of(order: control.Load) -> Manifest:
    """Raises FetchError."""
    return Manifest(order.model, tuple(ModelFile(f.name, f.size, f.sha256) for f in order.files))


def peers_of(order: control.Load) -> list[FilePeer]:
    hashes, packed = [f.sha256 for f in order.files], [f.sha256 for f in order.packed]
    return [
        FilePeer(
            p.host,
            p.port,
            {hashes[i] for i in p.files if i < len(hashes)} | {packed[i] for i in p.packed if i < len(packed)},
            Role.HEAD if p.head else Role.NODE,
        )
        for p in order.peers
    ]


class Fetcher:
    """directory: the cache, if not the user's own."""

    def __init__(self, environment: Environment, share: Share, directory: Path | None = None) -> None:
        self.fetched = 0
        """Bytes fetched from peers so far."""
        self._environment, self._share, self._directory = environment, share, directory

    async def fill(self, order: control.Load) -> None:
        """Gets the files that an order's layers need and this machine lacks: from other tools' stores here, or from peers if
        they have them.

        Raises FetchError if the order is invalid.
        """
        if not order.files:
            return
        manifest, peers = manifest_of(order), peers_of(order) if self._share.open else []
        layers = range(order.first_layer, order.end_layer)
        try:
            while missing := manifest.missing(layers, layers.start == 0, layers.stop == order.layers, self._directory):
                for file in missing:
                    if await _settled(partial(adopt, manifest, file, self._directory)):
                        continue
                    if not peers or not await self.fetch(manifest, file, peers):
                        log.warning("peers could not bring a file; its origin is asked", file=file.name) if peers else None
                        return
        except (OSError, FetchError) as error:
            log.warning("fetching from peers failed; the origin is asked", reason=str(error) or type(error).__name__)

    def offer(self, order: control.Load) -> list[str]:
        """Shares those of an order's files that this machine keeps. Returns the hashes of everything it shares."""
        if self._share.open and order.files:
            self._share.add(kept := manifest_of(order).kept(self._directory))
            for sha256 in kept:  # the origin may have delivered a file that a fetch from peers had begun
                with contextlib.suppress(OSError):
                    discard((self._directory or cache_dir()) / "parts", sha256)
        return self._share.files

    async def copy(self, order: control.Load, places: Mapping[int, Path], usable: Callable[[int], bool]) -> int:
        """Gets packed files of layers, as far as peers have them, and returns how many came. places: where they belong, by layer. usable: looks
        at one in its place, in a thread of its own, and deletes it if it is of no use. What does not come can be packed here."""
        peers, came = peers_of(order) if self._share.open else [], 0
        try:
            for layer, place in places.items():
                files = [ModelFile(place.name, found.size, found.sha256) for found in order.packed if found.layer == layer]
                if not all(file.sound for file in files):
                    raise FetchError(f"{files} are no files of packed weights")
                came += await self._copied(files, place, peers, partial(usable, layer))
        except (OSError, FetchError) as error:
            log.warning("packed weights could not be copied; they are packed here", reason=str(error) or type(error).__name__)
        return came

    async def _copied(self, files: list[ModelFile], place: Path, peers: list[FilePeer], usable: Callable[[], bool]) -> bool:
        """files: those that some peer has for this place, any of which will do."""
        parts = place.parent / "parts"  # on the same disk
        for file in files:
            if not (holders := [peer for peer in peers if _has(peer, file)]):
                continue
            path = parts / f"{file.sha256}.lock"
            if await self._alone(path, place.exists, partial(self._fetch, file, parts, place, holders)):
                if await self._environment.load(usable):
                    return True
                for peer in holders:
                    peer.lost = True
            log.warning("peers could not bring packed weights", file=file.name, peers=[join_host_port(p.host, p.port) for p in holders])
            with contextlib.suppress(OSError):
                discard(parts, file.sha256)
        return False

    async def offer_packed(self, order: control.Load, files: Mapping[int, Path]) -> list[control.PackedFile]:
        """Shares packed files, by layer, of an order's model. Returns what others have to know of them. Reads all of a file of which the hash
        is not known yet."""
        offered: list[control.PackedFile] = []
        if not self._share.open or not order.files:
            return offered
        packing, root = packing_of((f.sha256 for f in order.files), order.precision), self._directory or cache_dir()
        for layer, path in files.items():
            try:
                sha256, size = await _settled(partial(known_hash, path, root)), path.stat().st_size
            except OSError as error:
                log.warning("packed weights are not offered to other nodes", path=str(path), reason=str(error))
                continue
            self._share.add({sha256: path})
            offered.append(control.PackedFile(packing=packing, layer=layer, size=size, sha256=sha256))
        return offered

    async def fetch(self, manifest: Manifest, file: ModelFile, peers: list[FilePeer]) -> bool:
        """Puts one file in its place. Returns whether it is there. Raises OSError, FetchError."""
        parts, place = (self._directory or cache_dir()) / "parts", manifest.home(self._directory) / file.name
        return await self._alone(
            manifest.lock(file, self._directory),
            lambda: file.sha256 in manifest.kept(self._directory),
            partial(self._fetch, file, parts, place, peers),
        )

    async def _alone(self, path: Path, is_here: Callable[[], bool], fetch: Callable[[], Awaitable[bool]]) -> bool:
        """One process at a time fetches a file. path: of its lock. Returns whether it is there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(lock(path, wait=False))
                except BlockingIOError:
                    await asyncio.sleep(_POLL)
                    continue
                return is_here() or await fetch()

    async def _fetch(self, file: ModelFile, parts: Path, place: Path, peers: list[FilePeer]) -> bool:
        """If the assembled file has the wrong hash, nobody knows which peer lied. Then one peer must deliver all of it, and
        after that another. One that lied alone is asked no more."""
        part = await _settled(partial(PartialFile, parts, file))
        peers = [peer for peer in peers if _has(peer, file)]
        for crew in (peers, peers[:1], peers[1:2]):
            if not any(_has(peer, file) for peer in crew):
                continue
            gathering = _Gathering(self._environment, part)
            try:
                await gathering.run(crew)
            finally:
                self.fetched += gathering.brought
            if not part.ranges.complete:
                return False
            if await _settled(part.is_right):
                await _settled(partial(part.move, place))
                return True
            log.warning(
                "what peers sent is not the file; it was discarded", file=file.name, peers=[join_host_port(p.host, p.port) for p in crew]
            )
            if len(crew) == 1 and not part.resumed:  # else what an earlier fetch left may be wrong
                crew[0].lost = True
            await _settled(part.restart)
        part.discard()
        return False


class _Gathering:
    """One file, fetched from several peers."""

    def __init__(self, environment: Environment, part: PartialFile) -> None:
        self.brought = 0
        self._environment, self._part, self._file, self._ranges = environment, part, part.file, part.ranges
        self._changed = asyncio.Event()
        self._noting = asyncio.Lock()
        self._failure: OSError | None = None
        self._told = 0
        self._began = environment.now()

    async def run(self, peers: list[FilePeer]) -> None:
        """Runs until everything is here, or no peer is left to ask. Raises OSError if this machine's disk fails."""
        file = self._file
        log.info("fetching from peers", file=file.name, bytes=file.size, resumed=self._part.resumed, peers=len(peers))
        while not self._ranges.complete and self._failure is None:
            if not (crew := [peer for peer in peers if _has(peer, file)][:_CREW]):
                return
            async with asyncio.TaskGroup() as tasks:
                for peer in crew:
                    for _ in range(_CONNECTIONS):
                        tasks.create_task(self._draw(peer))
        if self._failure is not None:
            raise self._failure

    async def _draw(self, peer: FilePeer) -> None:
        """Fetches over one connection. If it ends after it delivered something, connects again."""
        backoff = Backoff(_FIRST_DELAY, _MOST_DELAY)
        stream: FrameStream | None = None
        try:
            while _has(peer, self._file) and (piece := await self._next()) is not None:
                fresh = stream is None
                try:
                    if stream is None:
                        stream = await self._environment.connect(peer.host, peer.port, _TIMEOUT, peer.role)
                        stream.trust(FRAME)
                    await self._write(piece, await _ask(stream, self._file.sha256, piece))
                except BaseException as error:
                    self._ranges.give_back(piece)
                    self._changed.set()
                    if stream is not None:
                        stream.abort()
                        stream = None
                    if not isinstance(error, _Sent | OSError | EOFError | ProtocolError):
                        raise
                    if self._judge(peer, error, fresh, backoff):
                        await asyncio.sleep(backoff.next(self._environment.rng))
                else:
                    await self._finish(piece)
        finally:
            if stream is not None:
                await stream.close()

    def _judge(self, peer: FilePeer, error: Exception, fresh: bool, backoff: Backoff) -> bool:
        """Decides what happens to a peer after an error. Returns whether to leave it alone for a while."""
        if self._failure is not None:
            return False  # an error of this machine
        if isinstance(error, _Sent):
            if str(error) == BUSY and backoff.tries < _BUSY_TRIES:
                return True
            peer.files.discard(self._file.sha256)
        elif fresh or isinstance(error, ProtocolError):
            log.warning("a peer is asked no more", peer=join_host_port(peer.host, peer.port), reason=str(error) or type(error).__name__)
            peer.lost = True
        return False

    @property
    def _over(self) -> bool:
        return self._ranges.complete or self._failure is not None

    async def _next(self) -> range | None:
        """The next range to ask for. Waits for ranges that others may give back."""
        while not self._over:
            if (piece := self._ranges.take()) is not None:
                return piece
            self._changed.clear()
            await self._changed.wait()
        return None

    async def _write(self, piece: range, bodies: list[memoryview]) -> None:
        try:
            await _settled(lambda: self._part.write(piece.start, bodies))
        except OSError as error:
            self._failure = error
            raise

    async def _finish(self, piece: range) -> None:
        self._ranges.finish(piece)
        self.brought += len(piece)
        self._changed.set()
        self._tell()
        async with self._noting:
            await _settled(self._part.note)

    def _tell(self) -> None:
        tenth = 10 * self._ranges.bytes_done // self._file.size
        if tenth > self._told:
            self._told = tenth
            seconds = max(self._environment.now() - self._began, 1e-9)
            log.info("fetched from peers", file=self._file.name, percent=10 * tenth, bytes_per_second=round(self.brought / seconds))


def _has(peer: FilePeer, file: ModelFile) -> bool:
    return not peer.lost and file.sha256 in peer.files


async def _ask(stream: FrameStream, sha256: str, piece: range) -> list[memoryview]:
    """A range of a file. Raises _Sent, OSError, EOFError, RemoteProtocolError."""
    async with asyncio.timeout(_TIMEOUT):
        await stream.send(Frame(FrameKind.FETCH, meta=messages.encode(messages.Fetch(sha256, piece.start, len(piece)))))
    bodies: list[memoryview] = []
    at = piece.start
    while at < piece.stop:
        async with asyncio.timeout(_TIMEOUT):
            frame = await stream.receive()
        if frame.kind is FrameKind.ERROR:
            message = messages.decode_error(frame.meta).message
            raise _Sent(message) if message in (BUSY, ABSENT) else RemoteProtocolError(f"{stream.peer} refused: {message}")
        body = memoryview(frame.body)
        if frame.kind is not FrameKind.FETCH or frame.step != at or not 0 < len(body) <= min(FRAME, piece.stop - at):
            raise RemoteProtocolError(f"{stream.peer} sent {frame.kind.name} {frame.step} of {len(body)} bytes for {at} of {piece}")
        bodies.append(body)
        at += len(body)
    return bodies


async def _settled(work: Callable[[], T]) -> T:
    """Runs work in a thread. If cancelled, waits for the thread to end, so that it does not touch a file that it no longer owns."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
