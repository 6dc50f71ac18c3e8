"""Figures side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median


@dataclass
class Figure:
    name: str
    goal: float
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return median(self.ours) / median(self.theirs)

    def row(self) -> str:
        spread = f"{min(self.ours):.0f}-{max(self.ours):.0f} / {min(self.theirs):.0f}-{max(self.theirs):.0f}"
        verdict = "ok" if self.ratio >= self.goal else "SHORT"
        return f"| {self.name} | {median(self.ours):.1f} | {median(self.theirs):.1f} | {self.ratio:.2f} x | {self.goal:.1f} x | {verdict} | {spread} |"


def table(title: str, figures: list[Figure]) -> str:
    head = [f"### {title}", "", "| tokens/s | shoal | peer | ratio | goal | | ranges |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*head, *(figure.row() for figure in figures)])
