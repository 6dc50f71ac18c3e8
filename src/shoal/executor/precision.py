"""How a stored matrix is executed, and the bytes that this takes.

`auto` loses least for the given file: block formats run as they are stored (4-bit ones with their minimums, which requantising
to symmetric 4 bits would ruin). Formats that the kernels do not know run as 8 bits, and so do floats.
"""

from __future__ import annotations

from shoal.config import Precision
from shoal.models.matrix import BLOCKS

_STORED = {"q4_0": "q4", "q4_1": "q4", "q4_k": "q4", "q5_0": "q8", "q5_1": "q8", "q5_k": "q8", "q8_0": "q8"}
ROUNDED = {"q6_k"}
"""Formats that the kernels' packing reads and rounds to 8 or 4 bits itself, many times faster than via floats here."""
UNROUNDED = ("router", "shared_gate")
"""Matrices that decide which experts a row takes, and how much of them: never rounded."""
_MINIMUMS = {"q4_1", "q4_k", "q5_1", "q5_k"}


def executed(format: str, k: int, precision: Precision, head: bool = False) -> str:
    """'f32', 'q8' or 'q4' for rows of k stored values. The output head is never rounded to 4 bits, because it decides the token."""
    if precision is Precision.FP32 or k % 32:
        return "f32"
    if precision is Precision.AUTO:
        return _STORED.get(format, "q8")
    if precision is Precision.Q4 and head and _STORED.get(format) != "q4":
        return "q8"
    return str(precision)


def kept(format: str, target: str) -> bool:
    """Whether the stored blocks run unchanged."""
    return format in BLOCKS and _STORED[format] == target


def executed_bytes(format: str, n: int, k: int, precision: Precision, head: bool = False) -> int:
    """Bytes of an [n, k] matrix in the kernels' memory."""
    target = executed(format, k, precision, head)
    panels = (n + 15) // 16
    if target == "f32":
        return panels * 16 * k * 4
    block = (512 if target == "q8" else 256) + 32 * (2 if kept(format, target) and format in _MINIMUMS else 1)
    return panels * ((k // 32 * block + 63) // 64 * 64)
