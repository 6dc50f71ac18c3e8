"""Which experts are used, and how evenly: one collector, because a large model has thousands of experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import log

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_READS = {
    "hits": ("expert_cache_hits", "Experts that a step needed and that were in memory."),
    "misses": ("expert_cache_misses", "Experts that a step needed and had to wait for."),
    "bytes_read": ("expert_read_bytes", "Bytes of experts that were read from disk."),
    "ahead": ("prefetch_read", "Experts that were read before a step needed them."),
    "ahead_used": ("prefetch_used", "Experts read ahead that a step then needed."),
    "ahead_wasted": ("prefetch_wasted", "Experts read ahead that were given up before a step needed them."),
    "guesses": ("prefetch_guesses", "Guesses that the next layer needs an expert, read or not."),
    "guesses_right": ("prefetch_guesses_right", "Guesses that came true."),
    "guessed_about": ("prefetch_guessed_about", "Experts needed by layers about which there were guesses."),
    "misses_guessed_about": ("prefetch_misses_guessed_about", "Of these, those that were not in memory when there were guesses."),
    "misses_foreseen": ("prefetch_misses_foreseen", "Of these, those that were guessed with enough certainty for a read."),
}
"""By field of a node's report: the metric and what it says."""


def evenness(rows: Sequence[int]) -> float:
    """The entropy of the experts' shares, over that of equal shares: 1 if each computes as many rows as any other, 0 if one computes all.

    rows: of each expert, not all 0. A single expert is even.
    """
    if len(rows) == 1:
        return 1.0
    total = sum(rows)
    entropy = log(total) - sum(n * log(n) for n in rows if n) / total
    return min(max(entropy / log(len(rows)), 0.0), 1.0)


def peak(rows: Sequence[int]) -> float:
    """Of the busiest expert over the mean: 1 if all compute as many, their number if one computes all. rows: as above."""
    return max(rows) * len(rows) / sum(rows)


class ExpertUse(Collector):
    """experts: how many each layer has, of layers that have any; empty for a dense model, about which it says nothing."""

    def __init__(self, experts: Mapping[int, int], common: Mapping[str, str]) -> None:
        """common: labels of all, which come before the others."""
        self._common = common
        self._reads: dict[str, int] = {}
        """Empty while all experts of all nodes are in memory."""
        self._rows = {layer: [0] * count for layer, count in experts.items()}

    def add(self, layer: int, rows: Sequence[int]) -> bool:
        """rows: that each expert has computed and that were not added before. Returns whether the model has such a layer; otherwise
        nothing is added."""
        known = self._rows.get(layer)
        if known is None or len(known) != len(rows):
            return False
        self._rows[layer] = [a + b for a, b in zip(known, rows, strict=True)]
        return True

    def add_reads(self, counts: Mapping[str, int]) -> None:
        """counts: of control.messages.ExpertReads, those that were not added before."""
        self._reads = {name: self._reads.get(name, 0) + counts.get(name, 0) for name in _READS}

    def collect(self) -> Iterator[Metric]:
        """May run in another thread than `add`."""
        if not self._rows:
            return
        counter = CounterMetricFamily("shoal_expert_rows", "Rows that an expert computed.", labels=(*self._common, "layer", "expert"))
        even = GaugeMetricFamily(
            "shoal_expert_evenness",
            "How evenly a layer's experts are used: 1 if all compute as many rows, 0 if one computes all.",
            labels=(*self._common, "layer"),
        )
        busiest = GaugeMetricFamily(
            "shoal_expert_busiest",
            "Rows of a layer's busiest expert, over the mean of its experts; 1 if all are equal.",
            labels=(*self._common, "layer"),
        )
        for layer, rows in self._rows.items():
            for expert, count in enumerate(rows):
                counter.add_metric((*self._common.values(), str(layer), str(expert)), count)
            if any(rows):
                even.add_metric((*self._common.values(), str(layer)), evenness(rows))
                busiest.add_metric((*self._common.values(), str(layer)), peak(rows))
        yield counter
        yield even
        yield busiest
        for name, (metric, help) in _READS.items() if self._reads else ():
            yield self._one(CounterMetricFamily(f"shoal_{metric}", help, labels=(*self._common,)), self._reads[name])
        if guesses := self._reads.get("guesses"):
            accuracy = self._reads["guesses_right"] / guesses
            yield self._one(
                GaugeMetricFamily("shoal_prefetch_accuracy", "Share of the guesses that came true.", labels=(*self._common,)), accuracy
            )

    def _one(self, family: CounterMetricFamily | GaugeMetricFamily, value: float) -> Metric:
        family.add_metric((*self._common.values(),), value)
        return family
