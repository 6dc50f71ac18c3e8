"""The leases that a witness keeps: in memory, and in a file before anybody hears of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import msgspec

from shoal.errors import ConfigError, QueueFull
from shoal.leadership.tenure import Tenure
from shoal.leadership.witness_protocol import Acquire, Inquire, Release, Renew, State
from shoal.security.private_file import read_private, write_private

MOST = 64  # clusters: their file is read as one of at most 64 KiB
_VERSION = 1
_REMEDY = "delete it: the witness then waits until every lease that it may have granted is over"


class _Kept(msgspec.Struct):
    """owner: '': nothing is granted. duration: seconds of the last grant."""

    term: int
    owner: str = ""
    address: str = ""
    duration: float = 0.0


class _File(msgspec.Struct):
    version: int
    clusters: dict[str, _Kept]


class WitnessLedger:
    """A grant that the file knows of counts as made when the ledger is opened: renewals are not written. Of a cluster that it does not know
    there may be grants that were forgotten, with the file or another one: it gets none until one duration has passed."""

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        """Raises ConfigError if the file is there and is none of a ledger, or cannot be read."""
        self._path, self._now = path, now
        self._began = now()
        self._kept = _read(path)
        self._tenures = {
            cluster: Tenure(kept.term, kept.owner, kept.address, self._began + kept.duration if kept.owner else 0.0)
            for cluster, kept in self._kept.items()
        }

    def acquire(self, asked: Acquire) -> State:
        """Raises QueueFull where there are too many clusters, ConfigError where the file cannot be written."""
        tenure = self._tenures.get(asked.cluster)
        if tenure is None:
            if len(self._tenures) >= MOST:
                raise QueueFull(MOST, MOST, "clusters")
            if self._now() < self._began + asked.duration:
                return State(False, 0)
        wanted = dataclasses.replace(tenure) if tenure is not None else Tenure()
        if not wanted.acquire(asked.owner, asked.address, asked.floor, asked.duration, self._now()):
            return self._state(asked.cluster, False)
        self._keep(asked.cluster, _Kept(wanted.term, asked.owner, asked.address, asked.duration))
        wanted.until = self._now() + asked.duration  # writing took time
        self._tenures[asked.cluster] = wanted
        return self._state(asked.cluster, True)

    def renew(self, asked: Renew) -> State:
        tenure = self._tenures.get(asked.cluster)
        granted = tenure is not None and tenure.renew(asked.owner, asked.term, asked.duration, self._now())
        if granted and asked.duration > self._kept[asked.cluster].duration:
            kept = self._kept[asked.cluster]
            self._keep(asked.cluster, _Kept(kept.term, kept.owner, kept.address, asked.duration))
        return self._state(asked.cluster, granted)

    def release(self, asked: Release) -> State:
        tenure = self._tenures.get(asked.cluster)
        if tenure is None or not dataclasses.replace(tenure).release(asked.owner, asked.term):
            return self._state(asked.cluster, False)
        self._keep(asked.cluster, _Kept(tenure.term))
        tenure.release(asked.owner, asked.term)
        return self._state(asked.cluster, True)

    def inquire(self, asked: Inquire) -> State:
        return self._state(asked.cluster, True)

    def _state(self, cluster: str, granted: bool) -> State:
        if (tenure := self._tenures.get(cluster)) is None:
            return State(granted, 0)
        return State(granted, tenure.term, tenure.address if tenure.held(self._now()) else "")

    def _keep(self, cluster: str, kept: _Kept) -> None:
        """Raises ConfigError; then nothing has changed."""
        after = {**self._kept, cluster: kept}
        write_private(self._path, msgspec.json.encode(_File(_VERSION, after)))
        self._kept = after


def _read(path: Path) -> dict[str, _Kept]:
    """Raises ConfigError."""
    try:
        file = msgspec.json.decode(read_private(path, _REMEDY), type=_File)
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} does not hold the leases of a witness ({error}); if it is lost, {_REMEDY}") from None
    if file.version != _VERSION:
        raise ConfigError(f"{path} was written by another version of shoal; install that one, or delete the file")
    return file.clusters
