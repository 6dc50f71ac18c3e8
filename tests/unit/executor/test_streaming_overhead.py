"""The costs of streaming are measured with a real, tiny model, whose files do not stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.executor.streaming_overhead import streaming_overhead
from shoal.native import kernels


@pytest.mark.slow
@pytest.mark.skipif(kernels() is None, reason="the kernels are not compiled")
def test_layers_and_reads_cost_something(tmp_path: Path) -> None:
    found = streaming_overhead(tmp_path, 1, seconds=0.1)
    assert found.layer > 0
    assert found.read >= 0
    assert list(tmp_path.iterdir()) == []
