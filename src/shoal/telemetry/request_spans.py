"""The spans of a request in the head, made of its timeline when it is over. Pure.

    queue                      until the first step with rows of it
    prefill                    until the first token
      step                     on the head, each stage, and each link between them
      steps                    several, with medians, and the longest of them as a step
    decode                     until the last token
      step, steps
      interruption             in the phase in which it began

An answer may have any number of steps. Of a phase, the first few on a route are spans of their own; the others are put together in spans
of 8, 16, 32 and so on, so that the spans of an answer grow with the logarithm of its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from statistics import median

from shoal.observed.requests import RecoverySpan, StepSpan, Timeline
from shoal.observed.trace_span import Attribute, TraceSpan
from shoal.trace_context import TraceContext

SINGLE = 4
"""Steps that are spans of their own, at the beginning of a phase and of a route."""
TOGETHER = 8
"""Steps that are put together first; then twice as many, and so on."""


def spans_of(timeline: Timeline, request: TraceContext, interruptions: Callable[[float], TraceContext | None]) -> list[TraceSpan]:
    """The spans below `request`. interruptions: the trace of the interruption that began then, if it has one."""
    return [*_Spans(timeline, request, interruptions).all()]


def interruption_spans(recovery: RecoverySpan, context: TraceContext, requests: Sequence[TraceContext]) -> list[TraceSpan]:
    """The trace of an interruption by itself, linked to the requests that waited in it."""
    return [*_interruption(recovery, context, "", requests)]


class _Spans:
    def __init__(self, timeline: Timeline, request: TraceContext, interruptions: Callable[[float], TraceContext | None]) -> None:
        self._timeline, self._request, self._interruptions = timeline, request, interruptions

    def all(self) -> Iterator[TraceSpan]:
        view, steps = self._timeline.request, self._timeline.steps
        ended = max([view.ended or view.began, view.first, *(recovery.ended for recovery in self._timeline.recoveries)])
        first = view.first or ended
        started = min(max(steps[0].at, view.began), first) if steps else first
        phases = [("queue", view.began, started), ("prefill", started, first), ("decode", first, ended)]
        reached = 3 if view.first else 2 if steps else 1
        for number, (name, began, until) in enumerate(phases[:reached], 1):
            last = number == reached
            mine = [s for s in steps if (name == "prefill") == (not view.first or s.at < first)] if name != "queue" else []
            yield from self._phase(name, began, until, mine, last)

    def _phase(self, name: str, began: float, ended: float, steps: Sequence[StepSpan], last: bool) -> Iterator[TraceSpan]:
        view, context = self._timeline.request, self._request.below()
        attributes: dict[str, Attribute] = {}
        if name == "prefill":
            attributes = {"shoal.prompt_tokens": view.prompt_tokens, "shoal.cached_tokens": view.cached_tokens}
        if name == "decode":
            attributes = {"shoal.tokens": view.generated}
        if name != "queue":
            attributes["shoal.steps"] = len(steps)
        if last and self._timeline.lost:
            attributes["shoal.steps.lost"] = self._timeline.lost
        error = view.reason if last and view.state == "failed" else None
        yield TraceSpan(name, context, self._request.span, began, ended, attributes=attributes, error=error)
        for _, group in groupby(steps, lambda step: (step.epoch, len(step.stages))):
            yield from self._steps([*group], context)
        for recovery in self._timeline.recoveries:
            if (name == "queue" or began <= recovery.at) and (last or recovery.at < ended):
                known = self._interruptions(recovery.at)
                yield from _interruption(recovery, context.below(), context.span, [] if known is None else [known])

    def _steps(self, steps: Sequence[StepSpan], parent: TraceContext) -> Iterator[TraceSpan]:
        for step in steps[:SINGLE]:
            yield from self._step(step, parent)
        at, count = SINGLE, TOGETHER
        while at < len(steps):
            yield from self._together(steps[at : at + count], parent)
            at, count = at + count, 2 * count

    def _together(self, steps: Sequence[StepSpan], parent: TraceContext) -> Iterator[TraceSpan]:
        longest = max(steps, key=duration)
        stages = range(len(steps[0].stages))
        attributes: dict[str, Attribute] = {
            "shoal.steps": len(steps),
            "shoal.step.first": steps[0].number,
            "shoal.step.last": steps[-1].number,
            "shoal.epoch": steps[0].epoch,
            "shoal.tokens": sum(step.tokens for step in steps),
            "shoal.rows.median": median(step.rows for step in steps),
            "shoal.step.median": median(map(duration, steps)),
            "shoal.step.longest": duration(longest),
            "shoal.schedule.median": median(step.schedule for step in steps),
            "shoal.stages": self._nodes(longest),
            "shoal.link.median": [*(median(step.stages[i].hop for step in steps) for i in stages), median(step.back for step in steps)],
        }
        for part in ("wait", "prepare", "compute", "sample", "encode"):
            attributes[f"shoal.stage.{part}.median"] = [median(getattr(step.stages[i], part) for step in steps) for i in stages]
        context = parent.below()
        ended = max(step.at + duration(step) for step in steps)
        yield TraceSpan("steps", context, parent.span, min(step.at for step in steps), ended, attributes=attributes)
        yield from self._step(longest, context)

    def _step(self, step: StepSpan, parent: TraceContext) -> Iterator[TraceSpan]:
        """A step, and what came one after the other in it."""
        context, nodes = parent.below(), ["head", *self._nodes(step), "head"]
        attributes: dict[str, Attribute] = {
            "shoal.step": step.number,
            "shoal.epoch": step.epoch,
            "shoal.rows": step.rows,
            "shoal.rows.own": step.own,
            "shoal.tokens": step.tokens,
        }
        yield TraceSpan("step", context, parent.span, step.at, step.at + duration(step), attributes=attributes)
        at = step.at

        def taking(name: str, seconds: float, above: TraceContext, **more: Attribute) -> TraceSpan:
            nonlocal at
            at += seconds
            named = {f"shoal.{key}": value for key, value in more.items()}
            return TraceSpan(name, above.below(), above.span, at - seconds, at, attributes=named)

        yield taking(
            "schedule", step.schedule + step.encode + step.send, context, schedule=step.schedule, encode=step.encode, send=step.send
        )
        for i, stage in enumerate(step.stages):
            node = nodes[i + 1]
            yield taking(f"link {nodes[i]} → {node}", stage.hop, context, node=node)
            seconds = stage.wait + stage.prepare + stage.compute + stage.sample + stage.encode
            whole = taking(f"stage {node}", seconds, context, node=node, prepare=stage.prepare, encode=stage.encode)
            yield whole
            at = whole.began
            yield taking("wait", stage.wait, whole.context)
            at += stage.prepare
            yield taking("compute", stage.compute, whole.context)
            if stage.sample:
                yield taking("sample", stage.sample, whole.context)
            at = whole.ended
        yield taking(f"link {nodes[-2]} → head", step.back, context, node="head")
        yield taking("apply", step.apply, context)

    def _nodes(self, step: StepSpan) -> list[str]:
        """The names of its stages' nodes."""
        names = self._timeline.epochs.get(step.epoch, [])
        return [names[i] if i < len(names) else f"stage {i}" for i in range(len(step.stages))]


def _interruption(recovery: RecoverySpan, context: TraceContext, parent: str, links: Sequence[TraceContext]) -> Iterator[TraceSpan]:
    attributes: dict[str, Attribute] = {"shoal.reason": recovery.reason, "shoal.refilled_tokens": recovery.refilled}
    if recovery.node:
        attributes |= {"shoal.node": recovery.node, "shoal.silence": recovery.silence}
    if parent:
        attributes["shoal.kept_tokens"] = recovery.kept
    yield TraceSpan("interruption", context, parent, recovery.at, recovery.ended, attributes=attributes, links=[*links])
    at = recovery.at
    for name, seconds in recovery.parts.items():
        yield TraceSpan(name, context.below(), context.span, at, at + seconds)
        at += seconds


def duration(step: StepSpan) -> float:
    """Seconds from its scheduling to when its result was applied."""
    stages = sum(s.hop + s.wait + s.prepare + s.compute + s.sample + s.encode for s in step.stages)
    return step.schedule + step.encode + step.send + stages + step.back + step.apply
