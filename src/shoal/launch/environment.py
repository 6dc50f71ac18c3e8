"""What a process is started with that is to find the same shoal."""

from __future__ import annotations

import os
from pathlib import Path


def child_environment() -> dict[str, str]:
    """This process's own, with which another one finds the same shoal."""
    environment = dict(os.environ)
    source = str(Path(__file__).resolve().parents[2])
    environment["SHOAL_CONFIG"] = os.devnull  # what the file says has become settings, which are passed on
    environment["PYTHONPATH"] = os.pathsep.join(p for p in (source, environment.get("PYTHONPATH", "")) if p)
    return environment
