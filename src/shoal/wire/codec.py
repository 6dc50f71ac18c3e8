"""Encodings of activations, [rows, width] float32, for the wire.

    raw   4 bytes a value, exact
    bf16  2 bytes, relative error below 2^-8
    int8  1 byte and a float per row
    int4  half a byte and a bf16 scale per group of 32, for slow links

Pure arithmetic on arrays; the one part of the protocol that needs NumPy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.errors import RemoteProtocolError
from shoal.wire.frame import WireCodec

Floats = NDArray[np.float32]
GROUP = 32


def encoded_bytes(codec: WireCodec, rows: int, width: int) -> int:
    """Bytes of the body."""
    if codec is WireCodec.RAW:
        return rows * width * 4
    if codec is WireCodec.BF16:
        return rows * width * 2
    if codec is WireCodec.INT8:
        return rows * (width + 4)
    return rows * (width // 2 + width // GROUP * 2)


def encode(codec: WireCodec, x: Floats) -> memoryview:
    """x: [rows, width], width a multiple of 32 for int4."""
    rows, width = x.shape
    x = np.ascontiguousarray(x, np.float32)
    if codec is WireCodec.RAW:
        return x.data.cast("B")
    if codec is WireCodec.BF16:
        return _to_bf16(x).data.cast("B")
    if codec is WireCodec.INT8:
        scale = np.abs(x).max(axis=1) / np.float32(127)
        safe = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
        out = np.empty((rows, width + 4), np.uint8)
        out[:, :4] = scale.astype(np.float32).reshape(rows, 1).view(np.uint8)
        out[:, 4:] = np.rint(x / safe[:, None]).astype(np.int8).view(np.uint8)
        return out.data.cast("B")
    groups = x.reshape(rows, width // GROUP, GROUP)
    stored = _to_bf16(np.abs(groups).max(axis=2) / np.float32(7))
    scale = _from_bf16(stored)
    safe = np.where(scale > 0, scale, np.float32(1))
    q = (np.clip(np.rint(groups / safe[:, :, None]), -7, 7) + 8).astype(np.uint8).reshape(rows, width)
    packed = q[:, 0::2] | (q[:, 1::2] << 4)
    return np.concatenate([stored.view(np.uint8).reshape(rows, -1), packed], axis=1).data.cast("B")


def decode(codec: WireCodec, body: bytes | bytearray | memoryview, rows: int, width: int) -> Floats:
    """Raises RemoteProtocolError if the body has the wrong size. For raw, the result is a view of the body, not a copy."""
    data = np.frombuffer(body, np.uint8)
    if len(data) != encoded_bytes(codec, rows, width):
        raise RemoteProtocolError(f"{len(data)} bytes are not {rows} rows of {width} values in {codec.name.lower()}")
    if codec is WireCodec.RAW:
        return data.view(np.float32).reshape(rows, width)
    if codec is WireCodec.BF16:
        return _from_bf16(data.view(np.uint16)).reshape(rows, width)
    if codec is WireCodec.INT8:
        cells = data.reshape(rows, width + 4)
        scale = np.ascontiguousarray(cells[:, :4]).view(np.float32)
        return cells[:, 4:].view(np.int8).astype(np.float32) * scale
    scales = width // GROUP * 2
    cells = data.reshape(rows, scales + width // 2)
    scale = _from_bf16(np.ascontiguousarray(cells[:, :scales]).view(np.uint16))
    q = np.empty((rows, width), np.uint8)
    q[:, 0::2], q[:, 1::2] = cells[:, scales:] & 15, cells[:, scales:] >> 4
    values = (q.astype(np.float32) - 8).reshape(rows, width // GROUP, GROUP) * scale[:, :, None]
    return values.reshape(rows, width)


def _to_bf16(x: Floats) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _from_bf16(x: NDArray[np.uint16]) -> Floats:
    return (x.astype(np.uint32) << 16).view(np.float32)
