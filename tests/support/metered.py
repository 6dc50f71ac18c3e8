"""The metrics of a head that serves one model with one copy."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.pipeline_id import PipelineId
from shoal.telemetry.metrics import Metrics, ModelMetrics, PipelineMetrics


class Metered:
    """The parts of what is scraped, under names of their own."""

    def __init__(self, model: str = "m", experts: Mapping[int, int] | None = None) -> None:
        """experts: see PipelineMetrics."""
        self.all = Metrics()
        self.nodes = self.all.nodes
        self.model = self.all.models[model] = ModelMetrics(model)
        id = PipelineId(model)
        self.pipeline = self.all.pipelines[id] = PipelineMetrics(id, experts or {})

    def text(self) -> str:
        """In Prometheus' format."""
        return self.all.text().decode()
