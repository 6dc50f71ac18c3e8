"""Fetches a large file of the hub: ranges over a few connections, resumed where an earlier fetch ended, hashed before it is put in place.

The hub's own client neither resumes across processes nor hashes what it received. A partial file is stored where a fetch from
peers would store it, so that either can continue what the other began.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from time import sleep

import httpx2
import structlog

from shoal.errors import HashMismatch, Unreachable
from shoal.models import hub
from shoal.models.model_file import ModelFile
from shoal.models.part import PartialFile
from shoal.models.repository import RepositoryFile
from shoal.retry import Backoff

log = structlog.get_logger()

_CONNECTIONS = 4
_TRIES = 5  # in a row that deliver nothing
_FIRST_DELAY, _MOST_DELAY = 0.5, 8.0
_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
_CHUNK = 1 << 20


class Download:
    """One process at a time: the caller holds the file's lock. Raises OSError, FetchError, like hub.locate."""

    def __init__(self, name: str, commit: str, file: RepositoryFile, folder: Path) -> None:
        """name, commit, file: of a repository; the file has a hash. folder: where the partial file is stored."""
        self.file = file
        self._name, self._commit = name, commit
        self._part = PartialFile(folder, ModelFile(file.path.rpartition("/")[2], file.size, file.sha256))
        self._location: hub.Location | None = None
        self._ranged = False
        """Whether the server is known to send ranges."""
        self._lock = threading.Lock()
        self._rng = Random()

    @property
    def here(self) -> int:
        """Bytes received so far, including earlier fetches."""
        return self._part.ranges.bytes_done

    def begin(self, length: int) -> bytes:
        """The first bytes of the file: at least `length`, if it has that many."""
        length = min(length, self.file.size)
        while self._at_start < length:
            self._gather(1, lambda: self._at_start >= length, lambda: None)
        with self._part.path.open("rb") as file:
            return file.read(self._at_start)

    def finish(self, report: Callable[[], None]) -> None:
        """Fetches the rest and hashes the whole file. report: called whenever bytes arrive. Raises HashMismatch."""
        actual = ""
        for _ in range(2):
            while not self._part.ranges.complete:
                self._gather(_CONNECTIONS, lambda: False, report) if self._ranged else self._gather(1, lambda: self._ranged, report)
            report()
            if (actual := self._part.sha256()) == self.file.sha256:
                return
            log.warning("what came is not the file; it is fetched again", file=self.file.path)
            self._part.restart()
        self._part.discard()
        raise HashMismatch(f"hf:{self._name}: {self.file.path}", self.file.sha256, actual)

    def move(self, place: Path) -> None:
        """Puts the file in its place."""
        self._part.move(place)

    def discard(self) -> None:
        """Deletes what was received."""
        self._part.discard()

    @property
    def _at_start(self) -> int:
        """Bytes present from the beginning of the file."""
        done = self._part.ranges.done
        return done[0][1] if done and done[0][0] == 0 else 0

    def _gather(self, connections: int, enough: Callable[[], bool], report: Callable[[], None]) -> None:
        """Fetches until `enough`. Runs threads that do not keep the process from ending; raises their first failure here."""
        came: queue.SimpleQueue[Exception | int | None] = queue.SimpleQueue()
        stopped = threading.Event()

        def work() -> None:
            try:
                self._draw(came.put, lambda: stopped.is_set() or enough())
            except Exception as error:  # noqa: BLE001 - passed to the waiting caller
                came.put(error)
            else:
                came.put(None)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(connections)]
        for thread in threads:
            thread.start()
        left = len(threads)
        failure: Exception | None = None
        try:
            while left:
                event = came.get()
                if isinstance(event, int):
                    report()
                    continue
                left -= 1
                if event is not None:
                    stopped.set()
                    failure = failure or event
        finally:
            stopped.set()
        if failure is not None:
            raise failure

    def _draw(self, came: Callable[[int], None], stopped: Callable[[], bool]) -> None:
        """Fetches pieces one after another, over one connection."""
        backoff = Backoff(_FIRST_DELAY, _MOST_DELAY)
        with httpx2.Client(timeout=_TIMEOUT, follow_redirects=True) as client:
            while not stopped():
                with self._lock:
                    piece = self._part.ranges.take()
                if piece is None:
                    return
                try:
                    self._fetch(client, piece, came)
                except (httpx2.TransportError, _Refused, Unreachable) as error:
                    self._give_back(piece)
                    with self._lock:
                        self._location = None  # its signature may have expired
                    if backoff.tries + 1 >= _TRIES:
                        raise Unreachable(
                            f"hf:{self._name} could not be fetched: {error or type(error).__name__}; try again later"
                        ) from error
                    sleep(backoff.next(self._rng))
                except BaseException:
                    self._give_back(piece)
                    raise
                else:
                    backoff = Backoff(_FIRST_DELAY, _MOST_DELAY)

    def _give_back(self, piece: range) -> None:
        with self._lock:
            if piece in self._part.ranges.taken:
                self._part.ranges.give_back(piece)

    def _fetch(self, client: httpx2.Client, piece: range, came: Callable[[int], None]) -> None:
        location = self._located()
        headers = {**location.headers, "Range": f"bytes={piece.start}-{piece.stop - 1}", "Accept-Encoding": "identity"}
        with client.stream("GET", location.url, headers=headers) as answer:
            if answer.status_code == 206:
                self._keep(piece, b"".join(_bounded(answer, len(piece))), came)
                self._ranged = True
            elif answer.status_code == 200:
                self._take_all(answer, piece, came)  # a server without ranges sends the whole file
            else:
                raise _Refused(f"{location.url.partition('?')[0]} answered {answer.status_code}")

    def _located(self) -> hub.Location:
        with self._lock:
            if self._location is None:
                found = hub.locate(self._name, self._commit, self.file.path)
                if found.sha256 not in (None, self.file.sha256) or found.size not in (None, self.file.size):
                    raise HashMismatch(f"hf:{self._name}: {self.file.path}", self.file.sha256, str(found.sha256))
                self._location = found
            return self._location

    def _keep(self, piece: range, body: bytes, came: Callable[[int], None]) -> None:
        if len(body) != len(piece):
            raise _Refused(f"{len(body)} bytes came where {len(piece)} were asked for")
        self._part.write(piece.start, [body])
        with self._lock:
            self._part.ranges.finish(piece)
            self._part.note()
        came(len(piece))

    def _take_all(self, answer: httpx2.Response, piece: range | None, came: Callable[[int], None]) -> None:
        """Takes the whole file from one answer, piece by piece, skipping those that are here."""
        held, at = bytearray(), 0  # received bytes that are not stored yet, and their offset in the file
        try:
            for chunk in answer.iter_bytes(_CHUNK):
                held += chunk
                while piece is not None and at + len(held) > piece.start:
                    del held[: max(piece.start - at, 0)]
                    at = max(piece.start, at)
                    if len(held) < len(piece):
                        break
                    self._keep(piece, bytes(held[: len(piece)]), came)
                    with self._lock:
                        piece = self._part.ranges.take()
                if piece is None:
                    return
        finally:
            if piece is not None:
                self._give_back(piece)
        raise _Refused("the connection ended before the file did")


class _Refused(Exception):
    """An answer that delivers nothing."""


def _bounded(answer: httpx2.Response, most: int) -> Iterator[bytes]:
    """A body, limited to one chunk more than it may have."""
    count = 0
    for chunk in answer.iter_bytes(_CHUNK):
        yield chunk
        if (count := count + len(chunk)) > most:
            return
