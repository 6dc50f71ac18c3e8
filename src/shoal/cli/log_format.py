"""How lines are logged; apart from `logs`, which `--help` has no need to load."""

from __future__ import annotations

import enum


class LogFormat(enum.StrEnum):
    AUTO = "auto"
    TEXT = "text"
    JSON = "json"
