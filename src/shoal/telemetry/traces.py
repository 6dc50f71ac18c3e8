"""Traces of requests, as a head sends them on."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from shoal.errors import ConfigError

if TYPE_CHECKING:
    from shoal.telemetry.otlp import OtlpExport


def check_installed() -> None:
    """Raises ConfigError if traces cannot be sent."""
    try:
        found = find_spec("opentelemetry.exporter.otlp.proto.http") and find_spec("opentelemetry.exporter.otlp.proto.grpc")
    except ModuleNotFoundError:  # of a package that they are in
        found = None
    if found is None:
        raise ConfigError("--traces needs OpenTelemetry's packages, which are not installed; pip install 'shoal[traces]'")


def export_to(where: str) -> OtlpExport:
    """where: see ApiSettings.traces. Raises ConfigError."""
    check_installed()
    from shoal.telemetry.otlp import OtlpExport  # what it imports takes a tenth of a second and 20 MB

    return OtlpExport(where)
