"""Rows for experts on another machine, and what comes back, on the wire.

Rows travel as they are multiplied: rounded to bytes with a scale for 32 values, which loses nothing, because the products round them
anyway. What comes back is a sum for each row, of the experts that were asked: multiples of 2^-32 as doubles, which have the same bits in
whatever order such sums are added. Pure arithmetic on arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class RoutedHeader(msgspec.Struct, frozen=True, array_like=True):
    """The metadata of a frame with rows for experts."""

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


class Routed(msgspec.Struct, frozen=True, eq=False):
    """Rows of a layer that experts elsewhere are to run, as on the wire: the arrays are views of the body, in this order. An entry is one row
    of one expert."""

    header: RoutedHeader
    body: bytes | bytearray | memoryview

    @classmethod
    def of(
        cls, layer: int, experts: Ints, offsets: Ints, index: Ints, weights: Floats, values: Floats | tuple[Floats, NDArray[np.int8]]
    ) -> Self:
        """values: [rows, hidden], or rounded: scales and bytes."""
        arrays = [experts, offsets, index, weights, *(values if isinstance(values, tuple) else (values,))]
        rows, hidden = arrays[-1].shape
        header = RoutedHeader(layer, rows, hidden, len(experts), len(index), isinstance(values, tuple))
        return cls(header, b"".join([np.ascontiguousarray(array).tobytes() for array in arrays]))

    @property
    def layer(self) -> int:
        return self.header.layer

    @property
    def rows(self) -> int:
        return self.header.rows

    @property
    def hidden(self) -> int:
        return self.header.hidden

    @property
    def rounded(self) -> bool:
        return self.header.rounded

    @property
    def experts(self) -> Ints:
        """[experts], rising."""
        return np.frombuffer(self.body, np.int32, self.header.experts)

    @property
    def offsets(self) -> Ints:
        """[experts + 1] where the entries of each begin."""
        return np.frombuffer(self.body, np.int32, self.header.experts + 1, 4 * self.header.experts)

    @property
    def index(self) -> Ints:
        """[entries] the row."""
        return np.frombuffer(self.body, np.int32, self.header.entries, 4 * (2 * self.header.experts + 1))

    @property
    def weights(self) -> Floats:
        """[entries]"""
        return np.frombuffer(self.body, np.float32, self.header.entries, self._values_at - 4 * self.header.entries)

    @property
    def x(self) -> Floats:
        """[rows, hidden], of rows that are not rounded."""
        return np.frombuffer(self.body, np.float32, self.rows * self.hidden, self._values_at).reshape(self.rows, self.hidden)

    @property
    def scale(self) -> Floats:
        """[rows, hidden / 32], of rows that are rounded."""
        groups = self.hidden // GROUP
        return np.frombuffer(self.body, np.float32, self.rows * groups, self._values_at).reshape(self.rows, groups)

    @property
    def q(self) -> NDArray[np.int8]:
        """[rows, hidden], of rows that are rounded."""
        at = self._values_at + 4 * self.rows * (self.hidden // GROUP)
        return np.frombuffer(self.body, np.int8, self.rows * self.hidden, at).reshape(self.rows, self.hidden)

    @property
    def _values_at(self) -> int:
        return 4 * (2 * self.header.experts + 1 + 2 * self.header.entries)

    @property
    def sound(self) -> NDArray[np.bool_]:
        """[rows] whether what is multiplied is all numbers. A model may overflow: its sums then are none, and no worker's fault."""
        rows = np.asarray(np.isfinite(self.scale if self.rounded else self.x).all(axis=1))
        rows[self.index[~np.isfinite(self.weights)]] = False
        return rows

    def only(self, wanted: Sequence[int]) -> tuple[Self, Ints]:
        """What some of these experts are to run, and which of the rows these are."""
        places = np.flatnonzero(np.isin(self.experts, wanted))
        counts = np.diff(self.offsets)
        entries = np.flatnonzero(np.isin(np.repeat(self.experts, counts), wanted))
        rows, index = np.unique(self.index[entries], return_inverse=True)
        offsets = np.concatenate([[0], np.cumsum(counts[places])]).astype(np.int32)
        values = (self.scale[rows], self.q[rows]) if self.rounded else self.x[rows]
        part = self.of(self.layer, self.experts[places], offsets, index.astype(np.int32), self.weights[entries], values)
        return part, rows.astype(np.int32)

    def encode(self) -> tuple[bytes, bytes | bytearray | memoryview]:
        """A frame's metadata and body."""
        return _encoder.encode(self.header), self.body

    @classmethod
    def decode(cls, meta: bytes | memoryview, body: bytes | bytearray | memoryview) -> Self:
        """Raises RemoteProtocolError if the body's size is not what the metadata say, or what they say cannot be. Whoever reads the arrays does
        `check` them before."""
        try:
            said = _header.decode(meta)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RemoteProtocolError(f"metadata of rows for experts that cannot be read: {error}") from error
        plain = said.layer >= 0 and said.rows > 0 and said.hidden > 0 and 0 < said.experts <= MOST_EXPERTS and said.entries >= 0
        if not plain or (said.rounded and said.hidden % GROUP) or 8 * said.rows * said.hidden > MAX_BODY:  # their sums must fit a frame
            raise RemoteProtocolError(f"rows for experts that cannot be: {said}")
        row = 4 * (said.hidden // GROUP) + said.hidden if said.rounded else 4 * said.hidden
        size = 4 * (2 * said.experts + 1 + 2 * said.entries) + said.rows * row
        if size != memoryview(body).nbytes:
            raise RemoteProtocolError(f"rows for experts have {memoryview(body).nbytes} bytes instead of {size}")
        return cls(said, body)

    def check(self) -> None:
        """Raises RemoteProtocolError if there are experts or entries that cannot be. Otherwise it can be merged with others, and does not read
        or write what is theirs."""
        experts, offsets, index = self.experts, self.offsets, self.index
        # as numbers without a sign, what is negative is too large
        if (
            offsets[0] != 0
            or offsets.min() < 0
            or offsets[-1] != len(index)
            or np.diff(offsets).view(np.uint32).max() > self.rows
            or (len(index) and index.view(np.uint32).max() >= self.rows)
            or experts.min() < 0
            or (len(experts) > 1 and np.diff(experts).min() <= 0)
        ):
            raise RemoteProtocolError(f"experts or entries that cannot be, in {self.header}")


def merged(several: Sequence[Routed]) -> Routed:
    """As one: the rows one after the other. All are of one layer, and all rounded or none. Raises RemoteProtocolError: see `check`."""
    if len(several) == 1:
        return several[0]
    for routed in several:
        routed.check()
    begins = np.cumsum([0, *(routed.rows for routed in several[:-1])])
    owners = np.concatenate([np.repeat(routed.experts, np.diff(routed.offsets)) for routed in several])
    index = np.concatenate([routed.index + begin for routed, begin in zip(several, begins, strict=True)]).astype(np.int32)
    order = np.argsort(owners, kind="stable")
    experts, counts = np.unique(owners, return_counts=True)
    weights = np.concatenate([routed.weights for routed in several])
    first = several[0]
    if first.rounded:
        values = np.concatenate([routed.scale for routed in several]), np.concatenate([routed.q for routed in several])
    else:
        values = np.concatenate([routed.x for routed in several])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return Routed.of(first.layer, experts.astype(np.int32), offsets, index[order], weights[order], values)


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
