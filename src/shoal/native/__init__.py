"""The kernels: the only way to the compiled extension, with a NumPy reference of the attention beside it.

Nothing else imports the extension. If there was no compiler, it is missing; `kernels()` then returns None, `missing()` says
why, and the ONNX runtimes use the reference attention, slowly.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

BLOCK_TOKENS = 32
"""Tokens of a KV block: part of the kernels' memory layout, and therefore fixed for the whole cluster."""


@cache
def kernels() -> Any | None:
    """The extension module `_kernels`, or None."""
    return _loaded()[0]


def missing() -> str:
    """Why there are no kernels, and what to do about it; '' if there are."""
    return _loaded()[1]


@cache
def _loaded() -> tuple[Any | None, str]:
    try:
        from shoal.native import _kernels  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
    except ImportError as error:
        why = str(error) if any(Path(__file__).parent.glob("_kernels*.*")) else "there was no C++ compiler when shoal was installed"
        return None, (
            f"the compiled kernels are missing ({why}); install a C++ compiler (Debian: apt install g++), "
            "then install shoal again with --force-reinstall --no-cache-dir"
        )
    if _kernels.BLOCK_TOKENS != BLOCK_TOKENS:  # pyright: ignore[reportUnknownMemberType]
        raise ImportError("the compiled kernels belong to another version of shoal; reinstall it")
    return _kernels, ""  # pyright: ignore[reportUnknownVariableType]


def instruction_set(wanted: str = "") -> str | None:
    """The instruction set that the kernels use; None without the extension. Raises ValueError for one that this machine lacks."""
    module = kernels()
    return None if module is None else str(module.isa(wanted))
