"""The environment of a child process that must find the same shoal."""

from __future__ import annotations

import os
from pathlib import Path


def child_environment() -> dict[str, str]:
    """This process's environment, changed so that a child finds the same shoal."""
    environment = dict(os.environ)
    source = str(Path(__file__).resolve().parents[2])
    environment["SHOAL_CONFIG"] = os.devnull  # the file's contents are settings by now, which are passed on
    environment["PYTHONPATH"] = os.pathsep.join(p for p in (source, environment.get("PYTHONPATH", "")) if p)
    return environment
