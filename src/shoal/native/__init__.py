"""The kernels: the only way to the compiled extension, with a NumPy reference of the attention beside it.

Nothing else imports the extension. If there was no compiler, it is missing; `kernels()` then returns None, `missing()` says
why, and the ONNX runtimes use the reference attention, slowly.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.config import INSTRUCTION_SETS

if TYPE_CHECKING:
    from shoal.native._kernels import Dense as Dense
    from shoal.native._kernels import Experts as Experts
    from shoal.native._kernels import ExpertSet as ExpertSet
    from shoal.native._kernels import GroupedQuery as GroupedQuery
    from shoal.native._kernels import Linear as Linear
    from shoal.native._kernels import Matrix as Matrix
    from shoal.native._kernels import Norm as Norm
    from shoal.native._kernels import Stage as Stage

BLOCK_TOKENS = 32
"""Tokens of a KV block: part of the kernels' memory layout, and therefore fixed for the whole cluster."""


def kernels():  # its type is the module's, which has no name
    """The extension module, or None. `_kernels.pyi` describes it."""
    return _loaded()[0]


def missing() -> str:
    """Why there are no kernels, and what to do about it; '' if there are."""
    return _loaded()[1]


@cache
def _loaded():
    try:
        from shoal.native import _kernels
    except ImportError as error:
        compiled = [path for path in Path(__file__).parent.glob("_kernels*.*") if path.suffix != ".pyi"]
        why = str(error) if compiled else "there was no C++ compiler when shoal was installed"
        return None, (
            f"the compiled kernels are missing ({why}); install a C++ compiler (Debian: apt install g++), "
            "then install shoal again with --force-reinstall --no-cache-dir"
        )
    if _kernels.BLOCK_TOKENS != BLOCK_TOKENS:
        raise ImportError("the compiled kernels belong to another version of shoal; reinstall it")
    return _kernels, ""


def instruction_sets() -> list[str]:
    """Those that the kernels can use here, the best one first; none without the extension."""
    module, found = kernels(), list[str]()
    if module is None:
        return found
    for name in INSTRUCTION_SETS:
        try:
            found.append(module.isa(name))
        except ValueError:
            continue
    return found


def instruction_set(wanted: str = "") -> str | None:
    """The instruction set that the kernels use; None without the extension. Raises ValueError for one that this machine lacks."""
    module = kernels()
    return None if module is None else module.isa(wanted)
