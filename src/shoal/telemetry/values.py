"""A number by labels for Prometheus, counted here or reported by others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Values(Collector):
    """A counter if its name ends in `_total`, else a gauge."""

    def __init__(self, name: str, help: str, labels: tuple[str, ...] = (), common: Mapping[str, str] = NO_LABELS) -> None:
        """common: labels of all values, which come before the others."""
        self._name, self._help, self._labels, self._common = name, help, labels, common
        self._by: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def set(self, value: float, *labels: str) -> None:
        self._by[labels] = value

    def add(self, value: float, *labels: str) -> None:
        self._by[labels] = self._by.get(labels, 0.0) + value

    def only(self, values: dict[tuple[str, ...], float]) -> None:
        """These, by labels, and no others."""
        self._by = dict(values)

    def forget(self, label: str, value: str) -> None:
        """Drops everything with this value of a label."""
        if label in self._labels:
            at = self._labels.index(label)
            self._by = {labels: one for labels, one in self._by.items() if labels[at] != value}

    def collect(self) -> Iterator[Metric]:
        """May run in another thread than the others."""
        kind = CounterMetricFamily if self._name.endswith("_total") else GaugeMetricFamily
        family = kind(self._name, self._help, labels=(*self._common, *self._labels))
        for labels, value in [*self._by.items()]:
            family.add_metric((*self._common.values(), *labels), value)
        yield family
