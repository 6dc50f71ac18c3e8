"""The steps of timelines as slices on the tracks of the head, the links and the stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from shoal.observed.requests import StepSpan, Timeline


class Track(NamedTuple):
    """kind: 'head', 'link' or 'stage'. stage: its index; a link has that of the stage it leads to, the way back the number of stages."""

    kind: str
    stage: int = 0


HEAD = Track("head")


class Slice(NamedTuple):
    """part: 'schedule', 'encode', 'send', 'apply', 'wire', 'wait', 'prepare', 'compute' or 'sample'. began: since 1970."""

    track: Track
    part: str
    began: float
    seconds: float

    @property
    def ended(self) -> float:
        return self.began + self.seconds


class Run(NamedTuple):
    """Steps on one route, each once, in order. nodes: of its stages. tokens, in a step: of all requests asked about. lost: steps that
    were not kept. left_out: steps of other routes."""

    nodes: tuple[str, ...]
    steps: tuple[StepSpan, ...]
    lost: int = 0
    left_out: int = 0


def merged(timelines: Iterable[Timeline]) -> Run:
    """The steps of the route that has most of them. A step that served several requests is in the timeline of each."""
    steps: dict[tuple[int, int], StepSpan] = {}
    nodes: dict[int, Sequence[str]] = {}
    lost = 0
    for timeline in timelines:
        nodes |= timeline.epochs
        lost = max(lost, timeline.lost)
        for step in timeline.steps:
            key = step.epoch, step.number
            before = steps.get(key)
            steps[key] = step if before is None else _together(before, step)
    counts = Counter(epoch for epoch, _ in steps)
    if not counts:
        return Run((), (), lost)
    epoch = max(counts, key=lambda epoch: (counts[epoch], epoch))
    chosen = sorted((step for key, step in steps.items() if key[0] == epoch), key=lambda step: step.number)
    stages = len(chosen[-1].stages)
    whole = tuple(step for step in chosen if len(step.stages) == stages)
    names = (*nodes.get(epoch, ()), *(f"stage {i + 1}" for i in range(stages)))[:stages]
    return Run(names, whole, lost, len(steps) - len(whole))


def _together(a: StepSpan, b: StepSpan) -> StepSpan:
    return StepSpan(
        a.number, a.epoch, a.at, a.rows, a.own + b.own, a.tokens + b.tokens, a.schedule, a.encode, a.send, a.stages, a.back, a.apply
    )


def slices(step: StepSpan) -> Iterator[Slice]:
    """Its parts one after the other, without gaps."""
    at = step.at
    for track, part, seconds in _parts(step):
        yield Slice(track, part, at, seconds)
        at += seconds


def _parts(step: StepSpan) -> Iterator[tuple[Track, str, float]]:
    yield HEAD, "schedule", step.schedule
    yield HEAD, "encode", step.encode
    yield HEAD, "send", step.send
    for i, stage in enumerate(step.stages):
        yield Track("link", i), "wire", stage.hop
        yield Track("link", i), "wait", stage.wait
        yield Track("stage", i), "prepare", stage.prepare
        yield Track("stage", i), "compute", stage.compute
        yield Track("stage", i), "sample", stage.sample
        yield Track("stage", i), "encode", stage.encode
    yield Track("link", len(step.stages)), "wire", step.back
    yield HEAD, "apply", step.apply


def track_name(track: Track, nodes: Sequence[str]) -> str:
    """For people. nodes: of the stages."""
    if track.kind == "head":
        return "head"
    if track.kind == "stage":
        return nodes[track.stage]
    names = ["head", *nodes, "head"]
    return f"{names[track.stage]} → {names[track.stage + 1]}"
