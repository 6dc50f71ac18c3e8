from __future__ import annotations

import numpy as np
import pytest

from shoal.executor import memory_read
from shoal.executor.memory_read import streaming_read


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_byte_is_read_in_every_pass(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_read, "_SIZE", 6 << 20)
    passes: list[int] = []
    reduce = np.add.reduce

    class Add:
        @staticmethod
        def reduce(part: np.ndarray) -> int:
            passes.append(part.nbytes)
            assert int(reduce(part)) == part.size, "each number is 1"
            return 0

    monkeypatch.setattr(memory_read.np, "add", Add)
    assert streaming_read(threads) > 0
    assert sum(passes) == 8 * (6 << 20) and len(passes) == 8 * threads
