"""The queries of the Grafana dashboard and of the alert rules."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from tests.support.prometheus import DEPLOY

_SELECTOR = re.compile(r"(shoal_\w+|up)\b(?:\{([^}]*)\})?")
_GROUPED = re.compile(r"by \(([^)]*)\)")
_SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds."""


class Query(NamedTuple):
    row: str
    panel: str
    expression: str
    legend: str

    @property
    def metrics(self) -> set[str]:
        return {name for name, _ in _SELECTOR.findall(self.expression)} - {"up"}

    @property
    def labels(self) -> set[str]:
        """That it selects or groups by, or that the legend shows, except those that Prometheus adds."""
        selected = [
            part.partition("=")[0].strip("!~ ") for _, inside in _SELECTOR.findall(self.expression) for part in inside.split(",") if part
        ]
        grouped = [name.strip() for names in _GROUPED.findall(self.expression) for name in names.split(",")]
        shown = re.findall(r"\{\{(\w+)\}\}", self.legend)
        return {*selected, *grouped, *shown} - _SCRAPED

    def filled(self, window: str) -> str:
        """With the variables as Grafana fills them when all is chosen. window: that rates are taken over."""
        return self.expression.replace("$__rate_interval", window).replace("$instance", ".*").replace("$model", ".*")


def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana" / "shoal.json").read_text())


def queries() -> list[Query]:
    """Of all panels and annotations."""
    board, row, out = dashboard(), "", list[Query]()
    for panel in board["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        out += [Query(row, panel["title"], target["expr"], target["legendFormat"]) for target in panel.get("targets", ())]
    return out + [Query("annotations", one["name"], one["expr"], "") for one in board["annotations"]["list"]]
