"""How a stored matrix is executed, and the bytes that this takes.

`auto` loses least for the given file: almost all formats run as they are stored, with their minimums or tables, which requantising to
symmetric 4 bits would ruin. All others run as 8 bits, and so do floats.
"""

from __future__ import annotations

from shoal.config import Precision
from shoal.models.matrix import FACTORED, stored_as

UNROUNDED = ("router", "shared_gate")
"""Matrices that decide which experts a row takes, and how much of them: never rounded."""
_OFFSETS = {"q2_k", "q4_1", "q4_k", "q5_1", "q5_k"}
"""Formats that have minimums."""
_CODES = {"q4": 256, "q5": 320, "q6": 384, "q8": 512}
"""Bytes of the codes of 32 inputs and 16 outputs."""


def executed(format: str, k: int, precision: Precision, head: bool = False) -> str:
    """'f32', 'q8', 'q6', 'q5' or 'q4' for rows of k stored values. The output head is never rounded to 4 bits, because it decides the token."""
    if precision is Precision.FP32 or k % 32:
        return "f32"
    stored = stored_as(format)
    if precision is Precision.AUTO or (precision is Precision.Q8 and stored == "q5"):  # as 8 bits, five would be the same weights
        return stored or "q8"
    if precision is Precision.Q4 and head and stored != "q4":
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
    stored = kept(format, target)
    times = 2 if stored and (format in _OFFSETS or format.startswith("u4g")) else 1
    supers = k // 256 * 32 if stored and format in FACTORED else 0
    return panels * ((k // 32 * _CODES[target] + (k // 32 * 32 + supers) * times + 63) // 64 * 64)
