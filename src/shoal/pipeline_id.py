"""The name of a pipeline: which copy of which model it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class PipelineId:
    model: str
    """As requests name it."""
    replica: int = 1
    """Counts from 1."""

    def __str__(self) -> str:
        return f"{self.model}/{self.replica}"
