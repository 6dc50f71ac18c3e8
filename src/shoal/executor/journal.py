"""The activations that a stage sent on, kept so that a lost later stage can be refilled without rerunning the stages before it.

Rows are stored at the places of their tokens' KV blocks (block * BLOCK_TOKENS + offset): the head alone decides about sharing,
forking and freeing blocks, and its decisions hold for the journal as they do for keys and values. Rows of the first blocks are
kept in memory, of the next ones in a file. Rows beyond that, or that cannot be written, are given up and recomputed when they
are needed.
"""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from typing import IO

import numpy as np
import structlog
from numpy.typing import NDArray

from shoal.executor.base import Floats, Ints
from shoal.native import BLOCK_TOKENS
from shoal.wire import codec
from shoal.wire.frame import WireCodec

log = structlog.get_logger()


@dataclass(frozen=True)
class JournalLimits:
    """Bytes in memory and on disk; if both are 0, there is no journal. `codec`: as rows go over the wire, so that a replay
    equals what was sent."""

    memory: int = 0
    disk: int = 0
    codec: WireCodec = WireCodec.RAW


@dataclass
class JournalCounters:
    kept: int = 0
    """Rows written to memory."""
    spilled: int = 0
    """Rows written to disk."""
    given_up: int = 0
    """Rows that found no room."""
    replayed: int = 0


class Journal:
    """Rows [hidden] float32 at one boundary between layers."""

    def __init__(self, limits: JournalLimits, blocks: int, hidden: int, counters: JournalCounters | None = None) -> None:
        self.counters = counters or JournalCounters()
        self._codec, self._hidden = limits.codec, hidden
        self._row = codec.encoded_bytes(limits.codec, 1, hidden)
        block = self._row * BLOCK_TOKENS
        in_memory = min(blocks, limits.memory // block)
        self._memory = np.zeros((in_memory * BLOCK_TOKENS, self._row), np.uint8)  # the system allocates pages when they are first written
        self._end = min(blocks, in_memory + limits.disk // block) * BLOCK_TOKENS
        self._known = np.zeros(blocks * BLOCK_TOKENS, np.bool_)
        self._file: IO[bytes] | None = None
        self._full = False

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of rows that can be replayed from memory."""
        return int(np.count_nonzero(self._known[: len(self._memory)])) * self._row

    def write(self, slots: Ints, rows: Floats) -> None:
        """rows: [len(slots), hidden]; they replace what the slots held before."""
        stored = np.frombuffer(codec.encode(self._codec, rows), np.uint8).reshape(len(slots), self._row)
        if len(self._memory) == len(self._known) or (near := slots < len(self._memory)).all():
            self._memory[slots] = stored
            self._known[slots] = True
            self.counters.kept += len(slots)
            return
        self._memory[slots[near]] = stored[near]
        self._known[slots[near]] = True
        self.counters.kept += int(near.sum())
        for slot, row in zip(slots[~near].tolist(), stored[~near], strict=True):
            self._known[slot] = self._spill(slot, row)

    def read(self, slots: Ints) -> tuple[Floats, NDArray[np.bool_]]:
        """The rows, with zeros for unknown ones, and a mask of those that are known."""
        known = self._known[slots].copy()
        stored = np.zeros((len(slots), self._row), np.uint8)
        for i in np.flatnonzero(known).tolist():
            slot = int(slots[i])
            row = self._memory[slot] if slot < len(self._memory) else self._fetch(slot)
            if row is None:
                known[i] = False
            else:
                stored[i] = row
        self.counters.replayed += int(known.sum())
        return np.array(codec.decode(self._codec, stored.data.cast("B"), len(slots), self._hidden)), known

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copies blocks (from, to)."""
        inside = np.arange(BLOCK_TOKENS, dtype=np.int32)
        for source, target in pairs:
            rows, known = self.read(source * BLOCK_TOKENS + inside)
            into = target * BLOCK_TOKENS + inside
            self._known[into] = False
            if known.any():
                self.write(into[known], rows[known])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _at(self, slot: int) -> int:
        return (slot - len(self._memory)) * self._row

    def _spill(self, slot: int, row: NDArray[np.uint8]) -> bool:
        """Whether the row is on disk now."""
        if slot < self._end and not self._full:
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the journal
                if _write_at(self._file.fileno(), row.tobytes(), self._at(slot)) < self._row:  # the last bytes of a full disk
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.counters.spilled += 1
                return True
            except OSError as error:
                log.warning("the journal cannot grow on disk; what does not fit in memory will be computed anew", reason=str(error))
            self._full = True
        self.counters.given_up += 1
        return False

    def _fetch(self, slot: int) -> NDArray[np.uint8] | None:
        if self._file is None:
            return None
        try:
            stored = _read_at(self._file.fileno(), self._row, self._at(slot))
        except OSError as error:
            log.warning("the journal cannot be read", reason=str(error))
            return None
        return np.frombuffer(stored, np.uint8) if len(stored) == self._row else None


def _write_at(file: int, data: bytes, at: int) -> int:
    """Returns the number of bytes written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(file, data, at)
    os.lseek(file, at, os.SEEK_SET)  # Windows
    return os.write(file, data)


def _read_at(file: int, size: int, at: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file, size, at)
    os.lseek(file, at, os.SEEK_SET)
    return os.read(file, size)
