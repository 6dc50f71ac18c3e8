"""The form that brings a file."""

from __future__ import annotations

from typing import Literal

from shoal.gateway.schema.wire import Wire


class Upload(Wire):
    file: bytes
    purpose: Literal["batch"]
