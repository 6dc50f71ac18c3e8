"""Output for people: progress, tables, one-line errors. On a terminal it fits the width; elsewhere it is plain text of any width."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

from shoal.sizes import human_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.models.description import Description
    from shoal.models.progress import Progress as Report
    from shoal.placement.expectation import Expectation
    from shoal.placement.partition import Placement

_ENDLESS = 100_000  # columns: nothing is wrapped or cut


class Screen(Console):
    """A terminal with its own width, or a pipe or file of any width; or, if `log` is set, lines of a log."""

    log: Any = None

    @property
    def size(self) -> ConsoleDimensions:  # pyright: ignore[reportIncompatibleMethodOverride] - nobody sets it
        return super().size if self.is_terminal else ConsoleDimensions(_ENDLESS, 25)

    @property
    def is_terminal(self) -> bool:
        return self.log is None and super().is_terminal

    def print(self, *objects: Any, **options: Any) -> None:
        if self.log is None:
            super().print(*objects, **options)
            return
        plain = Console(file=io.StringIO(), width=_ENDLESS)
        plain.print(*objects, **options)
        if text := plain.file.getvalue().strip():  # pyright: ignore
            self.log.info(text)


out = Screen()
err = Screen(stderr=True)


def line(text: str, style: str = "") -> None:
    """A line on stderr, unchanged: no markup, no guessed colours; only the terminal breaks it, so that it can be copied."""
    if err.log is not None:
        err.log.error(text) if style == "red" else err.log.info(text)
    else:
        err.print(Text(text, style=style), soft_wrap=True)


def line_out(text: str) -> None:
    """The same on stdout, for a command's result."""
    out.print(Text(text), soft_wrap=True)


def plain(text: str) -> str:
    """What others called something, so that it cannot steer the terminal: control characters, and those that turn its direction, become
    dots."""
    return "".join(character if character.isprintable() else "·" for character in text)


@contextlib.contextmanager
def downloading(what: str) -> Generator[Report]:
    """A progress bar on stderr that appears with the first byte."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(None), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(f"fetching {what}", total=None, visible=False)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield report


def described(model: str) -> Description:
    """The model, fetched with a progress bar if need be."""
    from shoal.models.description import describe

    with downloading(model) as report:
        return describe(model, report)


def emit(value: Any) -> None:
    """JSON for a script: sizes and times are numbers, and their names give the unit."""
    print(json.dumps(value, indent=2))


def layers(first: int, end: int) -> str:
    """Layers first to end - 1: '0-14'; '' if there are none."""
    return f"{first}-{end - 1}" if end > first else ""


def placement_rows(placement: Placement) -> list[dict[str, Any]]:
    """The split, for a script."""
    return [
        {
            "stage": i,
            "node": s.node,
            "first_layer": s.first,
            "last_layer": s.end - 1,
            "weight_bytes": s.weight_bytes,
            "held_bytes": s.held_bytes,
            "decode_ms": round(s.seconds * 1e3, 3),
            "prefill_tokens_per_second": round(1 / s.prefill_seconds),
        }
        for i, s in enumerate(placement.stages)
    ]


def worker_rows(placement: Placement) -> list[dict[str, Any]]:
    """Who holds experts for the stages, for a script."""
    return [{"node": w.node, "experts": sum(map(len, w.table)), "weight_bytes": w.weight_bytes} for w in placement.workers]


def split(placement: Placement, title: str = "") -> Rows:
    """The split, for people."""
    return Rows(split_rows(placement), title)


def split_rows(placement: Placement) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for s in placement.stages:
        rows.append({"node": s.node, "layers": layers(s.first, s.end), "weights": human_bytes(s.weight_bytes)})
        if placement.streams:
            rows[-1]["in memory"] = human_bytes(s.held_bytes)
    for worker in worker_rows(placement):
        rows.append({"node": worker["node"], "layers": f"{worker['experts']} experts", "weights": human_bytes(worker["weight_bytes"])})
        if placement.streams:
            rows[-1]["in memory"] = rows[-1]["weights"]
    return rows


def expected(told: Expectation, slots: int) -> str:
    return f"weights are read from disk as they are needed: {speed_words(told.alone, told.together, slots)}; {limit_words(told.limit)}"


def limit_words(name: str) -> str:
    """name: of what would have to be faster, like 'disk'."""
    return {"memory": "memory is the limit", "workers": "the workers are the limit"}.get(name, f"the {name} is the limit")


def speed_words(one: float, batch: float, size: int) -> str:
    """Tokens per second of one stream, and of so many together."""
    together = f", {rate_words(batch)} for {size} at once" if size > 1 else ""
    return f"about {rate_words(one)} tokens/s for one stream{together}"


def rate_words(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"


class Rows:
    """A table for people, made of rows with the same columns.

    If the terminal is too narrow, each row becomes a paragraph instead of being cut; in a pipe it is a line with aligned columns.
    """

    def __init__(self, rows: list[dict[str, Any]], title: str = "", style: str = "") -> None:
        self._names = [*rows[0]] if rows else []
        self._rows = [[str(value) for value in row.values()] for row in rows]
        self._right = [all(isinstance(row[name], int | float) for row in rows) for name in self._names]
        self._title, self._style = title, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._title:
            yield Text(self._title, style="bold")
        if not console.is_terminal:
            yield Text("\n".join(self._aligned()))
            return
        made = self._table()
        fits = Measurement.get(console, options.update(max_width=_ENDLESS), made).maximum <= options.max_width
        yield made if fits else Text("\n".join(self._paragraphs()), style=self._style)

    def _table(self) -> Table:
        from rich import box
        from rich.table import Table

        made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, border_style="dim", header_style="dim", row_styles=[self._style])
        for name, right in zip(self._names, self._right, strict=True):
            made.add_column(name, justify="right" if right else "left", no_wrap=True)
        for row in self._rows:
            made.add_row(*(Text(cell) for cell in row))
        return made

    def _aligned(self) -> Iterable[str]:
        every = [self._names, *([cell.replace("\n", ", ") for cell in row] for row in self._rows)]
        widths = [max(map(len, column)) for column in zip(*every, strict=True)]
        for row in every:
            padded = (c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, self._right, strict=True))
            yield "  ".join(padded).rstrip()

    def _paragraphs(self) -> Iterable[str]:
        width = max(len(name) for name in self._names)
        for i, row in enumerate(self._rows):
            yield from [""] * (i > 0)
            for name, cell in zip(self._names, row, strict=True):
                yield f"{name.ljust(width)}  {cell.replace(chr(10), ', ')}".rstrip()
