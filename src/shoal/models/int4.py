"""GPTQ's and AWQ's 4-bit matrices as rows that the kernels pack without loss.

A checkpoint has, for a matrix [n, k]: qweight (int32, eight codes each), qzeros (zero points, packed likewise) and scales, both for each
group of inputs and each output. A weight is scale * (code - zero point).

    GPTQ  qweight [k/8, n], inputs 8i .. 8i + 7 from the lowest bits on; qzeros [groups, n/8]; g_idx [k], the group of each input
    AWQ   qweight [k, n/8]; qzeros [groups, n/8]; the outputs of a number are in the order 0, 2, 4, 6, 1, 3, 5, 7

The rows made here are of the formats "u4g<group>" (for each group a half, its scale, a byte, its zero point, and its codes, two in a byte)
and, where all zero points are 8, "s4g<group>", without them. With act-order (desc_act) the groups are no runs of inputs; such a matrix
becomes rows of float32, as do groups that are no multiple of 32 and scales that are no halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.models.matrix import Floats, StoredMatrix

Packed = NDArray[np.int32]
METHODS = ("gptq", "awq")
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Int4:
    """What a checkpoint's quantization_config says."""

    method: str
    """'gptq' or 'awq'."""
    group: int
    """Inputs of a group; -1: all of them."""
    act_order: bool = False
    """Whether groups may be no runs of inputs."""
    zero_offset: int = 0
    """What is added to the stored zero points: GPTQ's first format stores them less one."""

    @staticmethod
    def of(config: Mapping[str, Any], where: object) -> Int4:
        """config: the model's quantization_config. Raises UnsupportedModel."""

        def expect(key: str, *wanted: object) -> None:
            if (value := config.get(key, wanted[0])) not in wanted:
                choice = " or ".join(map(str, wanted))
                raise UnsupportedModel(f"{where}: the {method} quantisation has {key} {value}, which is not supported; {choice} is")

        method = config.get("quant_method")
        if method not in METHODS:
            raise UnsupportedModel(f"{where}: the quantisation {method} is not supported; gptq and awq are")
        expect("w_bit" if "w_bit" in config else "bits", 4)
        group = config.get("q_group_size", config.get("group_size", 128))
        if not isinstance(group, int) or (group < 1 and group != -1):
            raise UnsupportedModel(f"{where}: the {method} quantisation has groups of {group}, which cannot be")
        if method == "awq":
            expect("version", "gemm", "GEMM")
            expect("zero_point", True)
            return Int4(method, group)
        expect("checkpoint_format", "gptq", "gptq_v2")
        expect("pack_dtype", "int32")
        if config.get("dynamic"):
            raise UnsupportedModel(f"{where}: the gptq quantisation differs from module to module ('dynamic'), which is not supported")
        return Int4(method, group, bool(config.get("desc_act")), 0 if config.get("checkpoint_format") == "gptq_v2" else 1)

    def format(self, k: int) -> str:
        """That of rows of k inputs, as far as the configuration tells; the rows may have fewer bytes."""
        group = k if self.group == -1 else self.group
        return "f32" if self.act_order or group % 32 or k % group else f"u4g{group}"

    def shape(self, where: object, name: str, qweight: Sequence[int], qzeros: Sequence[int], scales: Sequence[int]) -> tuple[int, int]:
        """[n, k] of the matrix that tensors of these shapes stand for. Raises CorruptModel."""
        if {len(qweight), len(qzeros), len(scales)} != {2}:
            raise CorruptModel(where, f"{name} has tensors that are no matrices")
        k, n = (qweight[0] * 8, qweight[1]) if self.method == "gptq" else (qweight[0], qweight[1] * 8)
        groups = 1 if self.group == -1 else -(-k // self.group)
        if tuple(scales) != (groups, n) or tuple(qzeros) != (groups, n // 8) or n % 8 or k % 8 or not k:
            shapes = f"qweight {list(qweight)}, qzeros {list(qzeros)}, scales {list(scales)}"
            raise CorruptModel(where, f"{name} has {shapes}, which do not fit groups of {self.group}")
        return n, k

    def matrix(
        self, where: object, name: str, qweight: Packed, qzeros: Packed, scales: NDArray[Any], g_idx: NDArray[Any] | None = None
    ) -> StoredMatrix:
        """The matrix of a module. scales: [groups, n] float16 or float32. g_idx: [k], GPTQ's, if it has one. Raises CorruptModel."""
        if (qweight.dtype, qzeros.dtype) != (np.int32, np.int32):
            raise CorruptModel(where, f"{name} has tensors that are not int32")
        n, k = self.shape(where, name, qweight.shape, qzeros.shape, scales.shape)
        group = k if self.group == -1 else self.group
        groups = len(scales)
        zeros = _unpacked(qzeros, range(8) if self.method == "gptq" else _AWQ_ORDER).astype(np.uint8) + np.uint8(self.zero_offset)
        codes = _pairs_of_gptq(qweight) if self.method == "gptq" else _pairs_of_awq(qweight)
        runs: NDArray[np.int64] = np.arange(k, dtype=np.int64) // group
        idx: NDArray[np.int64] = runs if g_idx is None else g_idx.astype(np.int64)
        if idx.shape != (k,) or idx.min() < 0 or idx.max() >= groups:
            raise CorruptModel(where, f"{name} has a g_idx that names groups which are not there")
        with np.errstate(over="ignore"):
            halves = scales.astype(np.float16)
        if k % group or group % 32 or not np.array_equal(idx, runs) or not np.array_equal(halves, scales):
            return StoredMatrix("f32", _floats(codes, zeros, scales, idx).view(np.uint8), k)
        symmetric = bool(np.all(zeros == 8))
        parts = [np.ascontiguousarray(halves.T)[..., None].view(np.uint8), codes.reshape(n, groups, group // 2)]
        if not symmetric:
            parts.insert(1, zeros.T[..., None])
        return StoredMatrix(f"{'s' if symmetric else 'u'}4g{group}", np.concatenate(parts, axis=-1).reshape(n, -1), k)


def _unpacked(packed: Packed, order: Any) -> NDArray[np.uint8]:
    """[rows, 8 * columns] of [rows, columns]: the nibble at i, from the lowest on, is the value order[i] of its eight."""
    out = np.empty((*packed.shape, 8), np.uint8)
    for at, value in enumerate(order):
        out[..., value] = (packed >> (4 * at)) & 15
    return out.reshape(packed.shape[0], -1)


def _pairs_of_gptq(qweight: Packed) -> NDArray[np.uint8]:
    """[n, k/2] bytes of two inputs, the first in the low nibble: that is how the numbers lie in memory, so they only change places."""
    return np.ascontiguousarray(qweight.T.astype("<i4", copy=False)).view(np.uint8)


def _pairs_of_awq(qweight: Packed) -> NDArray[np.uint8]:
    k, columns = qweight.shape
    out = np.empty((columns, 8, k // 2), np.uint8)
    for at, value in enumerate(_AWQ_ORDER):
        nibble = ((qweight >> (4 * at)) & 15).astype(np.uint8)
        out[:, value] = (nibble[::2] | nibble[1::2] << 4).T
    return out.reshape(columns * 8, k // 2)


def _floats(codes: NDArray[np.uint8], zeros: NDArray[np.uint8], scales: NDArray[Any], idx: NDArray[np.int64]) -> Floats:
    q = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1).astype(np.float32)
    q -= zeros[idx].T
    q *= scales[idx].T.astype(np.float32)
    return q
