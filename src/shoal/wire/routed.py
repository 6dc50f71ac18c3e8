"""Rows for experts on another machine, and what comes back, on the wire.

Rows travel as they are multiplied: rounded to bytes with a scale for 32 values, which loses nothing, because the products round them
anyway. What comes back is a sum for each row, of the experts that were asked: multiples of 2^-32 as doubles, which have the same bits in
whatever order such sums are added. Pure arithmetic on arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from shoal.errors import RemoteProtocolError
from shoal.wire.codec import GROUP, Floats
from shoal.wire.frame import MAX_BODY

Ints = NDArray[np.int32]
Sums = NDArray[np.float64]
"""[rows, hidden]"""
MOST_EXPERTS = 1 << 16
"""Of a frame."""
_NO_BYTES, _NO_FLOATS = np.zeros((0, 0), np.int8), np.zeros((0, 0), np.float32)


class RoutedHeader(msgspec.Struct, frozen=True, array_like=True):
    """The metadata of a frame with rows for experts; its body are the arrays of `Routed`, in their order."""

    layer: int
    rows: int
    hidden: int
    experts: int
    entries: int
    rounded: bool


class SumsHeader(msgspec.Struct, frozen=True, array_like=True):
    """The metadata of the answer; its body are the sums."""

    rows: int
    hidden: int
    waited: float
    """Seconds until the worker began with the rows."""
    computed: float
    """Seconds that it took."""


_header = msgspec.msgpack.Decoder(RoutedHeader)
_answer = msgspec.msgpack.Decoder(SumsHeader)
_encoder = msgspec.msgpack.Encoder()


@dataclass(frozen=True, eq=False)
class Routed:
    """Rows of a layer that experts elsewhere are to run. An entry is one row of one expert."""

    layer: int
    experts: Ints
    """[experts], rising."""
    offsets: Ints
    """[experts + 1] where the entries of each begin."""
    index: Ints
    """[entries] the row."""
    weights: Floats
    """[entries]"""
    scale: Floats
    """[rows, hidden / 32]; no rows if they are not rounded."""
    q: NDArray[np.int8]
    """[rows, hidden], rounded; no rows if they are not."""
    x: Floats
    """[rows, hidden]; no rows if they are rounded."""

    @property
    def rows(self) -> int:
        return max(len(self.q), len(self.x))

    @property
    def hidden(self) -> int:
        return self.q.shape[1] if len(self.q) else self.x.shape[1]

    @property
    def sound(self) -> NDArray[np.bool_]:
        """[rows] whether what is multiplied is all numbers. A model may overflow: its sums then are none, and no worker's fault."""
        rows = np.asarray(np.isfinite(self.scale if len(self.q) else self.x).all(axis=1))
        rows[self.index[~np.isfinite(self.weights)]] = False
        return rows

    def only(self, wanted: Sequence[int]) -> tuple[Self, Ints]:
        """What some of these experts are to run, and which of the rows these are."""
        if self.experts.tolist() == wanted:  # all of them, as where there is one worker: nothing is copied
            return self, np.arange(self.rows, dtype=np.int32)
        places = np.flatnonzero(np.isin(self.experts, wanted))
        entries = np.flatnonzero(np.isin(np.repeat(self.experts, np.diff(self.offsets)), wanted))
        rows, index = np.unique(self.index[entries], return_inverse=True)
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[places])]).astype(np.int32)
        if len(self.q):
            scale, q, x = self.scale[rows], self.q[rows], self.x
        else:
            scale, q, x = self.scale, self.q, self.x[rows]
        part = type(self)(self.layer, self.experts[places], offsets, index.astype(np.int32), self.weights[entries], scale, q, x)
        return part, rows.astype(np.int32)

    def encode(self) -> tuple[bytes, bytes]:
        """A frame's metadata and body."""
        arrays = (self.experts, self.offsets, self.index, self.weights, self.scale, self.q, self.x)
        header = RoutedHeader(self.layer, self.rows, self.hidden, len(self.experts), len(self.index), len(self.q) > 0)
        return _encoder.encode(header), b"".join([np.ascontiguousarray(array).tobytes() for array in arrays])

    @classmethod
    def decode(cls, meta: bytes | memoryview, body: bytes | bytearray | memoryview) -> Self:
        """Views of the body. Raises RemoteProtocolError if its size is not what the metadata say, or what they say cannot be. So whatever
        is decoded can be merged with others, and not read or write what is theirs."""
        try:
            said = _header.decode(meta)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RemoteProtocolError(f"metadata of rows for experts that cannot be read: {error}") from error
        plain = said.layer >= 0 and said.rows > 0 and said.hidden > 0 and 0 < said.experts <= MOST_EXPERTS and said.entries >= 0
        if not plain or (said.rounded and said.hidden % GROUP) or 8 * said.rows * said.hidden > MAX_BODY:  # their sums must fit a frame
            raise RemoteProtocolError(f"rows for experts that cannot be: {said}")
        sizes = [4 * said.experts, 4 * (said.experts + 1), 4 * said.entries, 4 * said.entries]
        sizes += (
            [4 * said.rows * (said.hidden // GROUP), said.rows * said.hidden, 0] if said.rounded else [0, 0, 4 * said.rows * said.hidden]
        )
        if sum(sizes) != memoryview(body).nbytes:
            raise RemoteProtocolError(f"rows for experts have {memoryview(body).nbytes} bytes instead of {sum(sizes)}")
        parts: list[memoryview] = []
        at = 0
        for size in sizes:
            parts.append(memoryview(body)[at : at + size])
            at += size
        experts, offsets, index = (np.frombuffer(part, np.int32) for part in parts[:3])
        weights = np.frombuffer(parts[3], np.float32)
        counts = np.diff(offsets.astype(np.int64))
        if (
            offsets[0] != 0
            or offsets[-1] != said.entries
            or not ((counts >= 0) & (counts <= said.rows)).all()
            or not ((index >= 0) & (index < said.rows)).all()
            or experts[0] < 0
            or not (experts[1:] > experts[:-1]).all()
        ):
            raise RemoteProtocolError(f"experts or entries that cannot be, in {said}")
        if not said.rounded:
            x = np.frombuffer(parts[6], np.float32).reshape(said.rows, said.hidden)
            return cls(said.layer, experts, offsets, index, weights, _NO_FLOATS, _NO_BYTES, x)
        scale = np.frombuffer(parts[4], np.float32).reshape(said.rows, -1)
        q = np.frombuffer(parts[5], np.int8).reshape(said.rows, said.hidden)
        return cls(said.layer, experts, offsets, index, weights, scale, q, _NO_FLOATS)


def merged(several: Sequence[Routed]) -> Routed:
    """As one: the rows one after the other. All are of one layer, and all rounded or none."""
    if len(several) == 1:
        return several[0]
    begins = np.cumsum([0, *(routed.rows for routed in several[:-1])])
    owners = np.concatenate([np.repeat(routed.experts, np.diff(routed.offsets)) for routed in several])
    index = np.concatenate([routed.index + begin for routed, begin in zip(several, begins, strict=True)]).astype(np.int32)
    order = np.argsort(owners, kind="stable")
    experts, counts = np.unique(owners, return_counts=True)
    weights = np.concatenate([routed.weights for routed in several])
    first = several[0]
    scale = np.concatenate([routed.scale for routed in several]) if len(first.q) else first.scale
    q = np.concatenate([routed.q for routed in several]) if len(first.q) else first.q
    x = first.x if len(first.q) else np.concatenate([routed.x for routed in several])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return Routed(first.layer, experts.astype(np.int32), offsets, index[order], weights[order], scale, q, x)


def encode_sums(sums: Sums, waited: float = 0.0, computed: float = 0.0) -> tuple[bytes, memoryview]:
    """A frame's metadata and body."""
    sums = np.ascontiguousarray(sums, np.float64)
    return _encoder.encode(SumsHeader(len(sums), sums.shape[1], waited, computed)), sums.data.cast("B")


def decode_sums(meta: bytes | memoryview, body: bytes | bytearray | memoryview, asked: Routed) -> tuple[Sums, SumsHeader]:
    """Raises RemoteProtocolError if the answer is of another shape than what was asked, or not of numbers although that was."""
    rows, hidden = asked.rows, asked.hidden
    try:
        said = _answer.decode(meta)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"metadata of experts' sums that cannot be read: {error}") from error
    if (said.rows, said.hidden) != (rows, hidden) or memoryview(body).nbytes != 8 * rows * hidden:
        raise RemoteProtocolError(f"sums of {said.rows} rows of {said.hidden} came, where {rows} of {hidden} were asked for")
    sums = np.frombuffer(body, np.float64).reshape(rows, hidden)
    if not (np.isfinite(sums).all() or np.isfinite(sums[asked.sound]).all()):
        raise RemoteProtocolError("the sums of experts are not all numbers")
    return sums, said
