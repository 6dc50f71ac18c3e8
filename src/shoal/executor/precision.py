"""How a stored matrix is executed, and the bytes that this takes.

`auto` loses least for the given file: formats with a scale for 32 weights or more run as they are stored, the 4-bit ones with their
minimums or tables, which requantising to symmetric 4 bits would ruin. All others run as 8 bits, and so do floats.
"""

from __future__ import annotations

from shoal.config import Precision
from shoal.models.matrix import stored_as

UNROUNDED = ("router", "shared_gate")
"""Matrices that decide which experts a row takes, and how much of them: never rounded."""
_OFFSETS = {"q4_1", "q4_k", "q5_1", "q5_k"}
"""Formats that have a minimum in each block."""


def executed(format: str, k: int, precision: Precision, head: bool = False) -> str:
    """'f32', 'q8' or 'q4' for rows of k stored values. The output head is never rounded to 4 bits, because it decides the token."""
    if precision is Precision.FP32 or k % 32:
        return "f32"
    if precision is Precision.AUTO:
        return stored_as(format) or "q8"
    if precision is Precision.Q4 and head and stored_as(format) != "q4":
        return "q8"
    return str(precision)


def kept(format: str, target: str) -> bool:
    """Whether the stored blocks run unchanged."""
    return stored_as(format) == target


def executed_bytes(format: str, n: int, k: int, precision: Precision, head: bool = False) -> int:
    """Bytes of an [n, k] matrix in the kernels' memory."""
    target = executed(format, k, precision, head)
    panels = (n + 15) // 16
    if target == "f32":
        return panels * 16 * k * 4
    offsets = kept(format, target) and (format in _OFFSETS or format.startswith("u4g"))
    block = (512 if target == "q8" else 256) + (64 if offsets else 32)
    return panels * ((k // 32 * block + 63) // 64 * 64)
