"""What Prometheus reads of a head."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Scraped:
    series: list[tuple[str, dict[str, str]]]
    values: list[float]

    def value(self, name: str, **labels: str | None) -> float:
        """Of the only series with that name, without `shoal_`, and these labels; None: without that label."""
        found = [
            value
            for (known, has), value in zip(self.series, self.values, strict=True)
            if known == f"shoal_{name}" and all(has.get(label) == wanted for label, wanted in labels.items())
        ]
        assert len(found) == 1, (name, labels, found)
        return found[0]

    @property
    def labels(self) -> dict[str, set[str]]:
        """The names of labels, by name of the metric."""
        out: dict[str, set[str]] = {}
        for name, labels in self.series:
            out.setdefault(name, set()).update(labels)
        return out


def scraped(text: str) -> Scraped:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return Scraped([(sample.name, dict(sample.labels)) for sample in samples], [float(sample.value) for sample in samples])
