"""What is used of Ray, without its types, which are incomplete."""

from __future__ import annotations

from typing import Any

import ray as _ray
import ray.autoscaler.sdk as _sdk
import ray.util as _util
import ray.util.scheduling_strategies as _strategies

ray: Any = _ray
util: Any = _util
sdk: Any = _sdk
strategies: Any = _strategies


def come(reference: Any) -> bool:
    """Whether an answer, or an error in its place, is there."""
    return bool(ray.wait([reference], timeout=0)[0])
