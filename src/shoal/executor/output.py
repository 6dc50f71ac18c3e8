"""What a model does to its logits after the output head."""

from __future__ import annotations

import numpy as np

from shoal.executor.base import Floats
from shoal.models.spec import ModelSpec


def finished(logits: Floats, spec: ModelSpec) -> Floats:
    """logits: [rows, vocabulary], changed in place."""
    if spec.logit_scale != 1:
        logits *= np.float32(spec.logit_scale)
    if spec.logit_cap:
        cap = np.float32(spec.logit_cap)
        logits /= cap
        np.tanh(logits, out=logits)
        logits *= cap
    return logits
