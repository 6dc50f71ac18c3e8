"""Where the time of a run went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from shoal.observed.requests import StepSpan
from shoal.profiling.slices import Run, Track, slices


class PartTime(msgspec.Struct, frozen=True):
    """seconds: over all steps. share: of all parts of all steps, 0 to 1; together they are 1. Steps overlap, so that the seconds of
    all parts may be more than the run took."""

    track: str
    index: int
    part: str
    seconds: float
    share: float


class StageTime(msgspec.Struct, frozen=True):
    """Seconds. busy: it worked on a step. bubble: it did not, though steps were under way. idle: none were. Together they are the run's
    wall time. wait: steps were here and waited for earlier ones, which is also busy."""

    node: str
    busy: float
    bubble: float
    idle: float
    compute: float
    wait: float


class StageLimit(msgspec.Struct, frozen=True):
    """What a stage's computing is measured against, over the steps of one kind. kind: 'decode' or 'prompt'. compute: measured seconds.
    memory: least seconds to read weights, keys and values at the node's measured speed; arithmetic: least seconds for the products.
    reached: share of what the limit allows; above 1 the node is faster than it measured when it joined."""

    node: str
    kind: str
    steps: int
    compute: float
    memory: float
    arithmetic: float
    bound: str
    reached: float


class StageParts(msgspec.Struct, frozen=True):
    """What a stage's computing was made of, over the steps of one kind, 'decode' or 'prompt'. compute: measured seconds. counted: whether the
    node counted its parts; else they are estimated from the costs of the model. parts: seconds, together `compute`, of those of
    'attention', 'feed-forward', 'experts', 'waiting', 'head' and 'other' that took any: see observed.computing."""

    node: str
    kind: str
    steps: int
    compute: float
    counted: bool
    parts: dict[str, float]


class LinkLoad(msgspec.Struct, frozen=True):
    """seconds: median of the way. bytes_per_token: of activations, as the model's width gives them; 0: not known, or only plans and results travel here."""

    name: str
    seconds: float
    bytes_per_token: int


class WhatIf(msgspec.Struct, frozen=True):
    """A change, and the tokens per second that are predicted with it. gain: over those predicted as it is, less 1. why: why nothing is predicted; ''."""

    change: str
    predicted: float = 0.0
    gain: float = 0.0
    why: str = ""


class Profile(msgspec.Struct, frozen=True):
    """wall: seconds from the first step's beginning to the last one's end. idle: of them, without any step under way. tokens: sampled.
    streams: requests at once. lost: steps that the head did not keep; left_out: steps on other routes. predicted: tokens per second at
    which the cluster as it is decodes so many streams, without prompts; 0: not known."""

    model: str
    nodes: list[str]
    streams: int
    wall: float
    idle: float
    steps: int
    rows: int
    tokens: int
    tokens_per_second: float
    parts: list[PartTime]
    stages: list[StageTime]
    lost: int = 0
    left_out: int = 0
    computing: list[StageParts] = []
    links: list[LinkLoad] = []
    limits: list[StageLimit] = []
    predicted: float = 0.0
    changes: list[WhatIf] = []
    notes: list[str] = []


def profiled(run: Run, model: str, streams: int) -> Profile:
    """Without what needs the costs of the model. Raises ValueError if there are no steps."""
    if not run.steps:
        raise ValueError("no steps")
    sums: dict[tuple[Track, str], float] = defaultdict(float)
    working: dict[int, list[tuple[float, float]]] = {i: [] for i in range(len(run.nodes))}
    under_way: list[tuple[float, float]] = []
    for step in run.steps:
        for one in (parts := [*slices(step)]):
            sums[one.track, one.part] += one.seconds
            if one.track.kind == "stage":
                working[one.track.stage].append((one.began, one.ended))
        under_way.append((step.at, parts[-1].ended))
    wall = max(end for _, end in under_way) - min(begin for begin, _ in under_way)
    active = min(covered(under_way), wall)
    whole = sum(sums.values()) or 1.0
    stages: list[StageTime] = []
    for i, node in enumerate(run.nodes):
        busy = min(covered(working[i]), active)
        compute, wait = sums[Track("stage", i), "compute"], sums[Track("link", i), "wait"]
        stages.append(StageTime(node, busy, active - busy, wall - active, compute, wait))
    tokens = sum(step.tokens for step in run.steps)
    return Profile(
        model=model,
        nodes=[*run.nodes],
        streams=streams,
        wall=wall,
        idle=wall - active,
        steps=len(run.steps),
        rows=sum(step.rows for step in run.steps),
        tokens=tokens,
        tokens_per_second=tokens / wall if wall else 0.0,
        parts=[PartTime(track.kind, track.stage, part, seconds, seconds / whole) for (track, part), seconds in sums.items()],
        stages=stages,
        lost=run.lost,
        left_out=run.left_out,
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds in at least one of the spans (begin, end)."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(end - max(begin, reached), 0.0)
        reached = max(reached, end)
    return total


def decodes(step: StepSpan) -> bool:
    """Whether each row of the requests asked about gave a token."""
    return step.own == step.tokens


def steps_by_kind(run: Run) -> list[tuple[str, list[StepSpan]]]:
    """'decode' and 'prompt', if there are any."""
    kinds = ("decode", [step for step in run.steps if decodes(step)]), ("prompt", [step for step in run.steps if not decodes(step)])
    return [(kind, steps) for kind, steps in kinds if steps]
