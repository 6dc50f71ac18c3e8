"""gpt-oss's MXFP4 against its definition: E2M1 codes, two in a byte, times a power of two."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.errors import CorruptModel
from shoal.models.mxfp4 import mxfp4

CODES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def test_neighbours_share_a_byte() -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (6, 4, 16), np.uint8)
    scales = rng.integers(110, 130, (6, 4), np.uint8)
    wanted = np.stack([CODES[blocks & 15], CODES[blocks >> 4]], axis=-1).reshape(6, 4, 32) * 2.0 ** (scales[..., None].astype(int) - 127)
    stored = mxfp4("m", "experts.3.gate_up_proj", blocks, scales)
    assert (stored.format, stored.n, stored.k) == ("mxfp4", 6, 128)
    assert np.array_equal(stored.floats(), wanted.reshape(6, 128))


@pytest.mark.parametrize(("blocks", "scales"), [((6, 4, 8), (6, 4)), ((6, 64), (6, 4)), ((6, 4, 16), (6, 5)), ((6, 0, 16), (6, 0))])
def test_tensors_that_do_not_fit_are_refused(blocks: tuple[int, ...], scales: tuple[int, ...]) -> None:
    with pytest.raises(CorruptModel, match="experts has blocks"):
        mxfp4("m", "experts", np.zeros(blocks, np.uint8), np.zeros(scales, np.uint8))
