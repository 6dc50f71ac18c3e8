"""Imports the kernels so that they run here: on the GPU if there is one, otherwise in Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported, and again while kernels run. The variable is set for that alone: other tests, and the
processes that they start, do not see it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module

import pytest
import torch

INTERPRETED = not torch.cuda.is_available()


def import_interpreted() -> None:
    """If something has imported Triton for compiling, it is imported anew, but for its extension, which a process can load only once."""
    for name in [name for name in sys.modules if name.split(".")[0] == "triton" and not name.startswith("triton._C")]:
        del sys.modules[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        import_module("shoal.triton.gating")
        import_module("shoal.triton.int8")


if INTERPRETED:
    import_interpreted()


@pytest.fixture(scope="module", autouse=True)
def _interpreted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setenv("TRITON_INTERPRET", "1")
        yield
