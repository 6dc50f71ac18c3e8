"""The benchmark of the kernels: what ours is timed against gives the same, and its tables are whole. Times are those of a GPU alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from benchmarks import gating
from shoal.triton import top_k_gating
from tests.support.gpu import DEVICE, normal_values

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("setting", gating.SETTINGS, ids=lambda setting: setting.name)
def test_rivals_choose_the_same_experts_with_the_same_weights(setting: gating.Setting) -> None:
    logits, bias = normal_values(4, setting.experts), setting.bias(str(DEVICE))
    weights, ids = top_k_gating(logits, setting.gating, bias)
    wanted, wanted_ids = setting.rival(logits, bias)
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(weights, wanted, rtol=1e-5, atol=0)


def test_every_row_of_a_table_has_a_cell_for_each_column(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(call: Callable[[], object], rounds: int, calls: int = 1) -> float:
        call()
        return float(rounds * calls)

    monkeypatch.setattr(gating, "called", timed)
    monkeypatch.setattr(gating, "replayed", timed)
    monkeypatch.setattr(gating, "SHAPES", ((48, 32),))
    text = "\n".join(gating.tables(str(DEVICE), [1, 3], 2, with_compile=False, copied=4000))
    tables = [part.strip().splitlines() for part in re.split(r"^### .*$", text, flags=re.MULTILINE)[1:]]
    assert [len(table) - 2 for table in tables] == [10, 10, 2]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    assert tables[1][2] == "| Mixtral | 8 | 2 | 1 | 2.0 | 2.0 | 1.00 x |"


def test_without_a_gpu_it_ends_with_status_2() -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-m", "benchmarks.gating"], env=hidden, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "benchmarks.gating needs a GPU that torch can use"
