"""The name under which a plan is kept: the same for the same question, another if anything in it differs."""

from __future__ import annotations

from hashlib import sha256

import msgspec

from shoal.placement.cost import ModelCost
from shoal.placement.hardware import Hardware
from shoal.placement.policy import Grid
from shoal.placement.workload import Workload

_EDITION = 2
"""Of the model of costs: raised when the same question gets another answer."""


def fingerprint(model: ModelCost, hardware: Hardware, workload: Workload, grid: Grid | None = None) -> str:
    """64 hexadecimal digits."""
    return sha256(msgspec.json.encode((_EDITION, model, hardware, workload, grid or Grid.of(workload.streams)))).hexdigest()
