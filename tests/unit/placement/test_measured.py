"""What the profile of a machine predicts for a model that was measured on such a machine."""

from __future__ import annotations

from statistics import median

import pytest

from shoal.config import KvType
from shoal.executor.hardware_files import read_hardware
from shoal.placement.cost import LayerCost, Matrices, ModelCost
from shoal.placement.steps import Steps
from shoal.placement.workload import Policy, Workload

ZEN4 = read_hardware("zen4-2c")
STEPS = {  # ms of a decode step with 1, 2, 4, 8, 16 and 32 rows, by context: docs/performance.md, "Cost as work grows"
    128: (3.8, 4.6, 8.0, 10.5, 16.6, 29.8),
    512: (4.6, 5.4, 9.5, 15.3, 26.4, 58.8),
    1024: (5.6, 7.9, 14.5, 25.0, 44.9, 85.5),
    4096: (11.2, 18.2, 35.2, 64.9, 122.5, 227.6),
}


def smollm2() -> ModelCost:
    """SmolLM2-135M: 5 bits a weight, the head 8.5."""
    hidden, width, vocabulary = 576, 1536, 49152
    one = 2 * hidden * hidden + 2 * hidden * 192 + 3 * hidden * width
    layer, head = Matrices(one * 5 // 8, one), hidden * vocabulary
    return ModelCost((LayerCost(layer, 2 * 192 * 2, 4 * hidden, sharing=3),) * 30, Matrices(head * 17 // 16, head), 4 * hidden, 0)


def held(rows: int) -> Policy:
    return Policy(rows, rows, "processor", "processor", 1.0, KvType.BF16, (0, smollm2().held_bytes), True)


def test_decode_steps():
    """Small layers of several rows lose time between kernels that no number of the profile holds: half of some steps."""
    ratios = [
        Steps(smollm2(), ZEN4, Workload(context, 1)).decode(held(rows)).seconds * 1e3 / measured
        for context, row in STEPS.items()
        for rows, measured in zip((1, 2, 4, 8, 16, 32), row, strict=True)
    ]
    assert min(ratios) > 0.5 and max(ratios) < 1.1
    assert median(ratios) == pytest.approx(0.84, abs=0.03)


def test_one_row():
    """Where memory is the limit, the roofline is right within 10 %."""
    for context, row in STEPS.items():
        step = Steps(smollm2(), ZEN4, Workload(context, 1)).decode(held(1))
        assert step.seconds * 1e3 == pytest.approx(row[0], rel=0.1)


def test_a_prompt():
    """1535 tokens per second were measured."""
    assert 512 / Steps(smollm2(), ZEN4, Workload(512, 1)).prefill(held(1)).seconds == pytest.approx(1535, rel=0.15)
