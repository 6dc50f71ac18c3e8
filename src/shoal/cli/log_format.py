"""The format of log lines; separate from `logs`, which `--help` does not need to load."""

from __future__ import annotations

import enum


class LogFormat(enum.StrEnum):
    AUTO = "auto"
    TEXT = "text"
    JSON = "json"
