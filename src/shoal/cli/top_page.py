"""A cluster on one screen of a terminal, as lines: what `shoal top` shows. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from shoal.cli.operator_client import Sight
from shoal.cli.show import layers, plain, rate_words
from shoal.observed.cluster import ClusterView, MachineView, PipelineView, StageView
from shoal.observed.event import WARNINGS, ClusterEvent
from shoal.observed.requests import RequestView
from shoal.sizes import human_bytes

SECTIONS = ("machines", "stages", "requests", "events")
_SHARES = {"machines": 4, "stages": 2, "requests": 2, "events": 3}
"""Of the lines of a screen, where not all fit."""
_GOOD, _BAD, _DIM = "green", "red", "dim"
_STATES = {"serving": _GOOD, "suspected": "yellow", "failed": _BAD, "held off": _BAD, "draining": "yellow", "waiting": _BAD}
_BAR = 12  # columns of the picture of the layers


@dataclass
class Look:
    """What of it the user wants to see."""

    section: str = "machines"
    """The one that is scrolled."""
    first: int = 0
    """The first row that is shown of it."""
    filter: str = ""
    typing: bool = False
    """The filter is being typed."""
    page: int = 5
    """Rows that the last screen had for it."""
    pipeline: str = ""
    """Whose machines, stages and figures are shown; '': those of the first."""
    pipelines: tuple[str, ...] = ()
    """Those that the last screen could show."""
    gone: str = ""
    """The one that was shown and is no more, until another is chosen."""

    def press(self, key: str) -> bool:
        """Returns whether the user wants to leave."""
        if self.typing:
            if key in ("enter", "escape"):
                self.typing, self.filter = False, self.filter if key == "enter" else ""
            elif key == "erase":
                self.filter = self.filter[:-1]
            elif len(key) == 1:
                self.filter += key
            self.first = 0
            return False
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -self.page, "page down": self.page, "home": -(10**9), "end": 10**9}
        if key in ("tab", "back tab"):
            at = SECTIONS.index(self.section) + (1 if key == "tab" else -1)
            self.section, self.first = SECTIONS[at % len(SECTIONS)], 0
        elif key == "/":
            self.typing, self.filter = True, ""
        elif key == "escape":
            self.filter, self.first = "", 0
        elif key in ("p", "P") and len(self.pipelines) > 1:
            at = self.pipelines.index(self.pipeline) if self.pipeline in self.pipelines else 0
            self.pipeline = self.pipelines[(at + (1 if key == "p" else -1)) % len(self.pipelines)]
            self.first, self.gone = 0, ""
        elif key in steps:
            self.first = max(self.first + steps[key], 0)
        return key == "q"

    def saw(self, view: ClusterView) -> None:
        """What is shown now is `view`."""
        self.pipelines = tuple(one.name for one in view.pipelines)
        if self.pipeline and self.pipeline not in self.pipelines:
            self.gone, self.pipeline = self.pipeline, ""
        self.pipeline = self.pipeline or view.pipeline

    def matches(self, *texts: str) -> bool:
        return any(self.filter.casefold() in text.casefold() for text in texts)


@dataclass(frozen=True)
class _Row:
    cells: list[str]
    style: str = ""


@dataclass(frozen=True)
class _Section:
    title: str
    head: list[str]
    rows: list[_Row]
    right: frozenset[str] = frozenset()
    """Columns of numbers."""
    last: bool = False
    """The last ones are the most interesting."""

    def lines(self, room: int, width: int, first: int, chosen: bool) -> list[Text]:
        """At most `room` lines, those of its title and its head included."""
        shown = max(room - (2 if self.head else 1), 0)
        most = max(len(self.rows) - shown, 0)
        start = min(first, most) if chosen else 0
        if self.last:
            start = most - start
        rows = self.rows[start : start + shown]
        count = f" {start + 1}-{start + len(rows)} of {len(self.rows)}" if len(rows) < len(self.rows) else ""
        out = [Text.assemble((f"{'▸ ' if chosen else ''}{self.title}", "bold"), (count, _DIM))]
        every = [self.head, *(row.cells for row in self.rows)]
        widths = [max(map(cell_len, column)) for column in zip(*every, strict=True)] if self.head else [0]
        if self.head:
            out.append(Text(self._joined(self.head, widths), style=_DIM))
        out += [Text(self._joined(row.cells, widths) if self.head else row.cells[0], style=row.style) for row in rows]
        for line in out:
            line.truncate(width, overflow="ellipsis")
        return out[:room]

    def _joined(self, cells: list[str], widths: list[int]) -> str:
        padded = (
            " " * (width - cell_len(cell)) + cell if name in self.right else set_cell_size(cell, width)
            for cell, width, name in zip(cells, widths, self.head, strict=True)
        )
        return "  ".join(padded).rstrip()


def page(seen: Sight, look: Look, width: int, height: int, trouble: str = "") -> list[Text]:
    """Exactly `height` lines of at most `width` columns. trouble: why what is shown is old; ''."""
    look.saw(seen.cluster)
    told = f"{look.gone} is gone" if look.gone else ""
    top = _top(seen.cluster, trouble or told, max(height // 3, 2), width)
    foot = _foot(look)
    sections = _sections(seen, look)
    room = _dealt({name: len(section.rows) + (2 if section.head else 1) for name, section in sections.items()}, height - len(top) - 1)
    look.page = max(room.get(look.section, 0) - 2, 1)
    if look.section in sections:
        look.first = min(look.first, max(len(sections[look.section].rows) - look.page, 0))
    body: list[Text] = []
    for name, section in sections.items():
        body += section.lines(room[name], width, look.first, name == look.section)
    lines = [*top, *body][: height - 1]
    lines += [Text()] * (height - 1 - len(lines)) + [foot]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def whole(seen: Sight, others: Sequence[ClusterView] = ()) -> list[Text]:
    """All of it, for a pipe or a file. others: as the pipelines have it that `seen` is not of."""
    look, view = Look(section=""), seen.cluster
    of_each = ("machines", "stages") if others else ()
    out: list[Text] = []
    if len(view.pipelines) > 1:
        out += [*_whole(_pipelines(view.pipelines)), Text()]
    out += _top(view, "", 1000, 0)
    sections = _sections(seen, look)
    for name in of_each:
        out += [Text(), *_whole(sections.pop(name))]
    for other in others:
        out += [Text(), *_top(other, "", 1000, 0)]
        theirs = _sections(msgspec.structs.replace(seen, cluster=other), look)
        for name in of_each:
            out += [Text(), *_whole(theirs[name])]
    for section in sections.values():
        out += [Text(), *_whole(section)]
    return out


def _whole(section: _Section) -> list[Text]:
    return section.lines(len(section.rows) + 2, 10_000, 0, False)


def _dealt(wanted: dict[str, int], room: int) -> dict[str, int]:
    """Lines for each section: those that want less than their share leave the rest to others."""
    out = dict.fromkeys(wanted, 0)
    left: list[str] = [*wanted]
    while left and room > 0:
        shares = sum(_SHARES[name] for name in left)
        given = {name: min(max(room * _SHARES[name] // shares, 1), wanted[name] - out[name]) for name in left}
        for name, most in given.items():
            lines = min(most, room)
            out[name] += lines
            room -= lines
        left = [name for name in left if out[name] < wanted[name]]
    return out


def _top(view: ClusterView, trouble: str, most: int, width: int) -> list[Text]:
    """most: lines. width: columns that the list of the pipelines may take; 0: it is not wanted."""
    several = len(view.pipelines) > 1
    machines = f"{len(view.machines)} machine{'s' * (len(view.machines) != 1)}"
    state = Text(plain(view.state), style=_STATES.get(view.state, "yellow"))
    out = [
        Text.assemble(
            ("shoal ", "bold"),
            (plain(view.pipeline if several else view.model.name), "bold"),
            "  ",
            state,
            f"  epoch {view.epoch}  {machines}  ",
        )
    ]
    out[0].append(f"{datetime.fromtimestamp(view.at):%H:%M:%S}", style=_DIM)
    speed = (
        f"{rate_words(view.measured)} tokens/s, predicted {rate_words(view.predicted)}, {rate_words(view.predicted_single)} for one stream"
    )
    asked = view.requests
    blocks = f"{asked.blocks_used / asked.blocks:.0%}" if asked.blocks else "-"
    out.append(Text(f"{speed}  {asked.running}/{asked.slots} running  {asked.waiting} waiting  KV {blocks}"))
    if several and width:
        out += _list(view, width, max((most - 2) // 2, 1))
    if trouble:
        out.append(Text(plain(trouble), style=f"bold {_BAD}"))
    if view.reason and view.state != "serving":
        out.append(Text(plain(view.reason), style="yellow"))
    out += [Text(f"! {plain(one.message)}", style=_BAD) for one in view.attention]
    out += [Text(f"  {plain(one.message)}{_gain(one.gain)}", style="cyan") for one in view.advice]
    return out[:most]


def _list(view: ClusterView, width: int, most: int) -> list[Text]:
    """All pipelines on as few lines as hold them, at most `most`; where they need more, those from the shown one on."""
    lines = _packed([_entry(one, one.name == view.pipeline) for one in view.pipelines], width)
    if len(lines) <= most:
        return lines
    at = next((i for i, one in enumerate(view.pipelines) if one.name == view.pipeline), 0)
    turned = [*view.pipelines[at:], *view.pipelines[:at]]
    return _packed([_entry(one, one.name == view.pipeline) for one in turned], width)[:most]


def _entry(one: PipelineView, shown: bool) -> Text:
    state = (plain(one.state), _STATES.get(one.state, "yellow"))
    return Text.assemble("▸" if shown else " ", (plain(one.name), "bold" if shown else ""), " ", state, f" {rate_words(one.measured)}/s")


def _packed(entries: Sequence[Text], width: int) -> list[Text]:
    lines: list[Text] = []
    for entry in entries:
        if lines and lines[-1].cell_len + 2 + entry.cell_len <= width:
            lines[-1].append("  ").append_text(entry)
        else:
            lines.append(entry)
    return lines


def _pipelines(pipelines: Sequence[PipelineView]) -> _Section:
    head = ["pipeline", "state", "running", "waiting", "tokens/s", "machines"]
    rows = [
        _Row(
            [
                plain(one.name),
                plain(one.state),
                str(one.requests.running),
                str(one.requests.waiting),
                rate_words(one.measured),
                plain(", ".join(one.nodes)) or "-",
            ]
        )
        for one in pipelines
    ]
    return _Section("pipelines", head, rows, frozenset(head[2:5]))


def _gain(gain: float) -> str:
    return f" ({gain:+.0%})" if gain else ""


def _foot(look: Look) -> Text:
    choice = "p P pipeline  " if len(look.pipelines) > 1 else ""
    if look.typing:
        return Text(f"filter: {look.filter}▏ Enter keeps it, Esc drops it", style="reverse")
    kept = f"  filter: {look.filter}" if look.filter else ""
    return Text(f"q quit  Tab section  {choice}↑↓ PgUp PgDn scroll  / filter{kept}", style=_DIM)


def _sections(seen: Sight, look: Look) -> dict[str, _Section]:
    view = seen.cluster
    return {
        "machines": _machines([one for one in view.machines if look.matches(one.name, one.state, one.address)], view.model.layers),
        "stages": _stages([one for one in view.stages if look.matches(one.node)], view.last_hop),
        "requests": _requests([one for one in seen.requests if look.matches(one.id, one.key, one.state)], view.at),
        "events": _events([one for one in seen.events.events if look.matches(one.message, one.kind, one.node)]),
    }


def _machines(machines: Sequence[MachineView], count: int) -> _Section:
    head = ["name", "state", "layers", "", "busy", "memory", "weights", "away"]
    rows = [
        _Row(
            [
                plain(one.name),
                plain(one.state) + (f" {one.slower:.1f}x slower" if one.slower > 1 else ""),
                _bar(one, count),
                layers(one.first_layer, one.end_layer) or (f"{one.experts} experts" if one.experts else "-"),
                f"{one.busy:.0%}",
                f"{human_bytes(one.resident)} of {human_bytes(one.memory)}",
                human_bytes(one.weights) if one.progress is None else plain(_progress(one)),
                f"{one.round_trip * 1e3:.1f} ms" if one.state != "suspected" else f"silent {one.silence:.0f} s",
            ],
            _STATES.get(one.state, "") if one.state != "serving" else "",
        )
        for one in machines
    ]
    return _Section("machines", head, rows, frozenset({"busy", "memory", "weights", "away"}))


def _progress(one: MachineView) -> str:
    if one.progress is None:
        return ""
    return f"{one.progress.words} {one.progress.done / one.progress.total:.0%}" if one.progress.total else one.progress.words


def _bar(one: MachineView, count: int) -> str:
    """Which of the model's layers it runs, as a picture."""
    if not count or one.end_layer <= one.first_layer:
        return "·" * _BAR
    first, end = one.first_layer * _BAR // count, max(-(-one.end_layer * _BAR // count), 1)
    return "·" * first + "█" * (end - first) + "·" * (_BAR - end)


def _stages(stages: Sequence[StageView], last_hop: float) -> _Section:
    head = ["stage", "layers", "hop", "wait", "compute", "sample", "of a step", "planned"]
    rows = [
        _Row(
            [
                plain(one.node),
                layers(one.first_layer, one.end_layer),
                _ms(one.hop),
                _ms(one.wait),
                _ms(one.compute),
                _ms(one.sample),
                f"{one.share:.0%}",
                _ms(one.predicted),
            ]
        )
        for one in stages
    ]
    if rows:
        rows.append(_Row(["back to the head", "", _ms(last_hop), "", "", "", "", ""], _DIM))
    return _Section("stages", head, rows, frozenset(head[2:])) if rows else _Section("stages: none", [], [])


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _requests(requests: Sequence[RequestView], now: float) -> _Section:
    head = ["request", "state", "key", "prompt", "answer", "tokens/s", "since"]
    rows = [
        _Row(
            [
                plain(one.id),
                plain(one.state),
                plain(one.key) or "-",
                str(one.prompt_tokens),
                str(one.generated),
                rate_words(one.tokens_per_second),
                f"{max((one.ended or now) - one.began, 0):.1f} s",
            ],
            {"failed": _BAD, "running": _GOOD}.get(one.state, _DIM if one.ended else ""),
        )
        for one in requests
    ]
    return _Section("requests", head, rows, frozenset(head[3:])) if rows else _Section("requests: none", [], [])


def _events(events: Sequence[ClusterEvent]) -> _Section:
    rows = [
        _Row([f"{datetime.fromtimestamp(one.at):%H:%M:%S} {plain(one.message)}"], "yellow" if one.kind in WARNINGS else "")
        for one in events
    ]
    return _Section("events", [], rows, last=True) if rows else _Section("events: none", [], [])
