"""What people see: progress, tables, one-line errors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from shoal.models.description import Description, describe
from shoal.models.sources import Progress as Report
from shoal.placement.partition import Placement

out = Console()
err = Console(stderr=True)


@contextlib.contextmanager
def downloading(what: str) -> Generator[Report]:
    """A progress bar on stderr that appears with the first byte."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(f"fetching {what}", total=None, visible=False)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield report


def described(model: str) -> Description:
    """The model, fetched with a progress bar if need be."""
    with downloading(model) as report:
        return describe(model, report)


def emit(value: Any) -> None:
    """JSON for a script."""
    print(json.dumps(value, indent=2, default=str))


def placement_rows(placement: Placement) -> list[dict[str, Any]]:
    return [
        {
            "stage": i,
            "node": s.node,
            "layers": f"{s.first}-{s.end - 1}",
            "weight_bytes": s.weight_bytes,
            "decode_ms": round(s.seconds * 1e3, 3),
            "prefill_tokens_per_second": round(1 / s.prefill_seconds),
        }
        for i, s in enumerate(placement.stages)
    ]


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold")
    for name in rows[0] if rows else ():
        made.add_column(name.replace("_", " "))
    for row in rows:
        made.add_row(*(escape(str(value)) for value in row.values()))
    return made
