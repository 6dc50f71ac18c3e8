"""Which experts are used, and how evenly: one collector, because a large model has thousands of experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import log

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


def evenness(rows: Sequence[int]) -> float:
    """The entropy of the experts' shares, over that of equal shares: 1 if each computes as many rows as any other, 0 if one computes all.

    rows: of each expert, not all 0. A single expert is even.
    """
    if len(rows) == 1:
        return 1.0
    total = sum(rows)
    entropy = log(total) - sum(n * log(n) for n in rows if n) / total
    return min(max(entropy / log(len(rows)), 0.0), 1.0)


class ExpertUse(Collector):
    """experts: how many each layer has, of layers that have any; empty for a dense model, about which it says nothing."""

    def __init__(self, experts: Mapping[int, int]) -> None:
        self._rows = {layer: [0] * count for layer, count in experts.items()}

    def add(self, layer: int, rows: Sequence[int]) -> bool:
        """rows: that each expert has computed and that were not added before. Returns whether the model has such a layer; otherwise
        nothing is added."""
        known = self._rows.get(layer)
        if known is None or len(known) != len(rows):
            return False
        self._rows[layer] = [a + b for a, b in zip(known, rows, strict=True)]
        return True

    def collect(self) -> Iterator[Metric]:
        """May run in another thread than `add`."""
        if not self._rows:
            return
        counter = CounterMetricFamily("shoal_expert_rows", "Rows that an expert computed.", labels=("layer", "expert"))
        even = GaugeMetricFamily(
            "shoal_expert_evenness",
            "How evenly a layer's experts are used: 1 if all compute as many rows, 0 if one computes all.",
            labels=("layer",),
        )
        for layer, rows in self._rows.items():
            for expert, count in enumerate(rows):
                counter.add_metric((str(layer), str(expert)), count)
            if any(rows):
                even.add_metric((str(layer),), evenness(rows))
        yield counter
        yield even
