"""The grids of the IQ formats, from the gguf package: the kernels' packing asks for one when the first such matrix is packed."""

from __future__ import annotations

import numpy as np
from gguf import quants
from numpy.typing import NDArray


def grid(format: str) -> NDArray[np.int8]:
    """Groups of weights that a format ('iq2_xxs', ...) chooses from: [count, width]. Raises AttributeError for a format without one."""
    cells = getattr(quants, format.upper())
    cells.init_grid()
    return np.ascontiguousarray(cells.grid.reshape(cells.grid_shape).astype(np.int8))
