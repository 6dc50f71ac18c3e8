"""The frame of the tensor protocol: a 32-byte little-endian header, msgpack metadata, a raw tensor body.

    0  magic u16   version u8   kind u8
    4  flags u16   dtype u8     codec u8
    8  epoch u32   metadata length u32
    16 step u64
    24 body length u64

Each side refuses invalid frames: a wrong length, an unknown kind, another version. The stream is then aborted and never read
again.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field

import msgspec

from shoal.errors import LocalProtocolError, RemoteProtocolError, VersionMismatch

HEADER = struct.Struct("<HBBHBBIIQQ")
MAGIC = 0x5A1B
VERSION = 1
MAX_META = 16 << 20
"""Bytes; a plan of 8192 tokens is about 40 KiB."""
MAX_BODY = 1 << 30
"""Bytes; 8192 rows of 16384 floats are 512 MiB."""
GREETING = 1 << 14
"""Most bytes of metadata and of a body before the peer has introduced itself."""
_STAGING = 1 << 16


class FrameKind(enum.IntEnum):
    HELLO = 1
    STEP = 2
    RESULT = 3
    ACK = 5
    PING = 6
    ERROR = 7
    BYE = 8
    FETCH = 9
    EXPERTS = 10
    """Rows for experts, or what came of them, with the same number as its step. See wire/routed.py."""


class Dtype(enum.IntEnum):
    NONE = 0
    FLOAT32 = 1


class WireCodec(enum.IntEnum):
    RAW = 0
    BF16 = 1
    INT8 = 2
    INT4 = 3


_KINDS = {int(kind): kind for kind in FrameKind}
_DTYPES = {int(dtype): dtype for dtype in Dtype}
_CODECS = {int(codec): codec for codec in WireCodec}


class Frame(msgspec.Struct, frozen=True):
    kind: FrameKind
    epoch: int = 0
    step: int = 0
    meta: bytes | memoryview = b""
    body: bytes | bytearray | memoryview = b""
    dtype: Dtype = Dtype.NONE
    codec: WireCodec = WireCodec.RAW
    flags: int = 0

    @property
    def size(self) -> int:
        return HEADER.size + len(self.meta) + memoryview(self.body).nbytes

    def buffers(self) -> list[bytes | bytearray | memoryview]:
        """What goes onto the wire, in order; the body is not copied. Raises LocalProtocolError beyond the limits."""
        body = memoryview(self.body).cast("B") if memoryview(self.body).nbytes else memoryview(b"")
        if len(self.meta) > MAX_META or body.nbytes > MAX_BODY:
            raise LocalProtocolError(f"a frame of {len(self.meta)} + {body.nbytes} bytes is over the limits {MAX_META} + {MAX_BODY}")
        if not (0 <= self.epoch < 2**32 and 0 <= self.step < 2**64):
            raise LocalProtocolError(f"epoch {self.epoch} or step {self.step} does not fit the header")
        header = HEADER.pack(
            MAGIC, VERSION, self.kind, self.flags, self.dtype, self.codec, self.epoch, len(self.meta), self.step, body.nbytes
        )
        if body.nbytes < 2048:  # one small write beats three
            return [b"".join((header, self.meta, body))]
        return [header + bytes(self.meta), body]


@dataclass
class FrameDecoder:
    """Reads a stream: `get_buffer` says where the next bytes go; `received` takes their number and returns the frames that they complete.

    Small frames are taken from a staging buffer; a large body is received straight into its own memory.
    """

    max_meta: int = MAX_META
    max_body: int = MAX_BODY
    _staging: bytearray = field(default_factory=lambda: bytearray(_STAGING))
    _filled: int = 0
    _taken: int = 0
    _header: tuple[int, ...] | None = None
    _rest: bytearray | None = None  # metadata and body of a frame that does not fit in the staging buffer
    _have: int = 0
    _broken: bool = False

    @property
    def mid_frame(self) -> bool:
        """Whether the stream would be cut inside a frame if it ended now."""
        return self._header is not None or self._filled > self._taken

    def get_buffer(self) -> memoryview:
        if self._rest is not None:
            return memoryview(self._rest)[self._have :]
        if self._taken:  # the rest is less than a frame: move it to the front
            left = self._filled - self._taken
            self._staging[:left] = self._staging[self._taken : self._filled]
            self._filled, self._taken = left, 0
        return memoryview(self._staging)[self._filled :]

    def received(self, count: int) -> list[Frame]:
        """Raises RemoteProtocolError, VersionMismatch; after that, the stream must not be used."""
        if self._broken:
            raise LocalProtocolError("reading after the stream broke")
        frames: list[Frame] = []
        try:
            if self._rest is not None:
                self._have += count
                if self._have == len(self._rest):
                    frames.append(self._finish(self._rest))
                    self._rest = None
                return frames
            self._filled += count
            while (frame := self._next()) is not None:
                frames.append(frame)
        except RemoteProtocolError:
            self._broken = True
            raise
        return frames

    def _next(self) -> Frame | None:
        if self._header is None:
            if self._filled - self._taken < HEADER.size:
                return None
            self._header = self._check(HEADER.unpack_from(self._staging, self._taken))
            self._taken += HEADER.size
        length = self._header[7] + self._header[9]
        available = self._filled - self._taken
        if available >= length:
            payload = self._staging[self._taken : self._taken + length]
            self._taken += length
            return self._finish(payload)
        if HEADER.size + length > len(self._staging):
            self._rest = bytearray(length)
            self._rest[:available] = self._staging[self._taken : self._filled]
            self._have = available
            self._filled = self._taken = 0
        return None

    def _check(self, header: tuple[int, ...]) -> tuple[int, ...]:
        magic, version, kind, _, dtype, codec, _, meta, _, body = header
        if magic != MAGIC:
            raise RemoteProtocolError(f"the peer does not speak shoal's tensor protocol (magic {magic:#06x})")
        if version != VERSION:
            raise VersionMismatch(version, VERSION)
        if kind not in _KINDS or dtype not in _DTYPES or codec not in _CODECS:
            raise RemoteProtocolError(f"a frame of unknown kind {kind}, type {dtype} or codec {codec}")
        if meta > self.max_meta or body > self.max_body:
            raise RemoteProtocolError(f"a frame announces {meta} + {body} bytes, over the limits {self.max_meta} + {self.max_body}")
        return header

    def _finish(self, payload: bytearray) -> Frame:
        assert self._header is not None
        _, _, kind, flags, dtype, codec, epoch, meta, step, _ = self._header
        self._header = None
        view = memoryview(payload)
        return Frame(_KINDS[kind], epoch, step, view[:meta], view[meta:], _DTYPES[dtype], _CODECS[codec], flags)
