"""Kernels in Triton, for runtimes on a GPU: the choice of experts, and products with INT8 weights.

They need the extra `triton` (torch and triton), which nothing else in shoal uses; so this module imports neither before a function is
asked for. `missing()` says what is not installed. Without a GPU the kernels run in Triton's interpreter, slowly: set TRITON_INTERPRET=1
before triton is imported.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.triton.gating import Gating, top_k_gating
    from shoal.triton.int8 import dequantise, int8_matmul, quantise

__all__ = ["Gating", "dequantise", "int8_matmul", "missing", "quantise", "top_k_gating"]

_PLACES = {"Gating": "gating", "top_k_gating": "gating", "quantise": "int8", "dequantise": "int8", "int8_matmul": "int8"}


def missing() -> str:
    """What is not installed, and what to do about it; '' if nothing is missing."""
    absent = [name for name in ("torch", "triton") if find_spec(name) is None]
    if not absent:
        return ""
    return f"{' and '.join(absent)} cannot be imported, which the Triton kernels need; install shoal[triton]"


def __getattr__(name: str) -> object:
    """The functions, each from its module. Raises ImportError with what is missing."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if why := missing():
        raise ImportError(why)
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
