"""The kernels: one door to the compiled extension, with a NumPy reference of the attention beside it.

Nothing else imports the extension. Where no compiler was at hand it is missing; `kernels()` then answers None, once with a
loud warning, and the ONNX runtimes run with the reference attention, slowly.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

BLOCK_TOKENS = 32
"""Tokens of a KV block: part of the kernels' memory layout, hence of the whole cluster."""


@cache
def kernels() -> Any | None:
    """The extension module `_kernels`, or None."""
    try:
        from shoal.native import _kernels  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
    except ImportError as error:
        warnings.warn(
            f"the compiled kernels are missing ({error}); attention runs in NumPy, many times slower. Install g++ and cmake, then reinstall shoal.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    if _kernels.BLOCK_TOKENS != BLOCK_TOKENS:  # pyright: ignore[reportUnknownMemberType]
        raise ImportError("the compiled kernels belong to another version of shoal; reinstall it")
    return _kernels  # pyright: ignore[reportUnknownVariableType]


def instruction_set(wanted: str = "") -> str | None:
    """The instruction set that the kernels use, None without the extension. Raises ValueError for one this machine lacks."""
    module = kernels()
    return None if module is None else str(module.isa(wanted))
