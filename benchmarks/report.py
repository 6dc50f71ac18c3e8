"""Figures side by side."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from shoal.native import instruction_set


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


def check(figures: Iterable[Figure], wanted: bool) -> None:
    """Ends the command with what was missed where that is wanted."""
    missed = [f"{figure.name}: {figure.ratio:.2f} x, the goal is {figure.goal:.1f} x" for figure in figures if figure.ratio < figure.goal]
    if wanted and missed:
        raise SystemExit("\n".join(["goals were missed:", *missed]))


def processor() -> str:
    """What the figures were taken on: the processor's name, and the instructions that the kernels use of it."""
    known = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", known.read_text()) if known.exists() else None
    return f"{named[1] if named else platform.processor() or platform.machine()} ({instruction_set()})"
