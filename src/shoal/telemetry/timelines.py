"""Requests, and the steps in which their tokens were made. Pure: moments come from outside, as the head's monotonic clock has them.

On a step's path nothing is computed but the split of its hops; everything else is done when somebody asks.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from shoal.observed.requests import HopSpan, RecoverySpan, RequestView, StepSpan, Timeline
from shoal.pipeline.timing import StepTiming
from shoal.request import Request, RequestId, TokenChunk
from shoal.trace_context import TraceContext

STEPS = 10_000
"""That are kept, of all requests."""
ANSWERS = 500
"""Ended ones that are kept."""
RECOVERIES = 100


class StepRecord(NamedTuple):
    """hops: seconds of the way to each stage, and of the way back."""

    timing: StepTiming
    hops: tuple[float, ...]


@dataclass
class Recovery:
    """An interruption. Moments by the head's clock. parts: as in RecoverySpan. node: that was lost; '': none was."""

    reason: str
    began: float
    ended: float
    parts: dict[str, float]
    refilled: int
    node: str = ""
    silence: float = 0.0
    pipeline: str = ""
    """Whose answers waited."""


@dataclass
class _Answer:
    id: str
    owner: str
    began: float
    requests: dict[RequestId, set[int]]
    """By id, the choices that have not ended."""
    prompt: int
    first_step: int
    """How many steps there had been before it began."""
    trace: TraceContext | None = None
    pipeline: str = ""
    cached: int = 0
    generated: int = 0
    first: float = 0.0
    latest: float = 0.0
    ended: float = 0.0
    state: str = "waiting"
    reason: str = ""
    kept: dict[int, int] = field(default_factory=dict[int, int])
    """Tokens that had been sampled when a recovery began, by its number."""

    @property
    def open(self) -> bool:
        return not self.ended


class TimelineListener(Protocol):
    """Is told of requests that are traced, at the moment: it does what takes time later, and elsewhere."""

    def ended(self, answer: str, trace: TraceContext) -> None:
        """The step in which it ended may not be recorded yet."""
        ...

    def interrupted(self, recovery: RecoverySpan, traces: Sequence[TraceContext]) -> None:
        """They waited in it, and go on."""
        ...


class Timelines:
    def __init__(self, wall: float) -> None:
        """wall: seconds since 1970 at which the head's clock was 0."""
        self.listener: TimelineListener | None = None
        self._wall = wall
        self._steps: deque[StepRecord] = deque(maxlen=STEPS)
        self._count = 0
        """Steps so far."""
        self._recoveries: deque[tuple[int, Recovery]] = deque(maxlen=RECOVERIES)
        self._recovered = 0
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._owners: dict[RequestId, _Answer] = {}
        self._nodes: dict[int, list[str]] = {}

    # What happens

    def begun(self, answer: str, requests: Sequence[Request], now: float, pipeline: str = "") -> None:
        """An answer was accepted, or is taken up again, by a pipeline."""
        self.ended(answer, now)
        known = {request.id: set(range(request.n)) for request in requests}
        owner = requests[0].owner if requests else ""
        prompt = sum(len(request.prompt) for request in requests)
        one = self._answers[answer] = _Answer(answer, owner, now, known, prompt, self._count, _trace(requests), pipeline)
        self._answers.move_to_end(answer)
        self._owners |= dict.fromkeys(known, one)
        while (
            len(self._answers) > ANSWERS and (old := next((id for id, other in self._answers.items() if not other.open), None)) is not None
        ):
            del self._answers[old]

    def moved(self, request: RequestId, pipeline: str) -> str:
        """It goes on at another pipeline. Returns the answer that it belongs to; '': to none that is known."""
        if (answer := self._owners.get(request)) is None:
            return ""
        answer.pipeline = pipeline
        return answer.id

    def step(self, timing: StepTiming, hops: tuple[float, ...]) -> None:
        self._count += 1
        self._steps.append(StepRecord(timing, hops))

    def sampled(self, chunks: Sequence[TokenChunk], now: float) -> None:
        for chunk in chunks:
            if (answer := self._owners.get(chunk.request)) is None:
                continue
            if answer.state == "waiting":
                answer.state = "running"
            if chunk.counts:
                answer.generated += 1
                answer.latest = now
                answer.first = answer.first or now
            answer.cached = max(answer.cached, chunk.cached)
            if chunk.finish is not None:
                self.finished(chunk.request, chunk.choice, now)

    def finished(self, request: RequestId, choice: int, now: float) -> None:
        """A choice is complete."""
        if (answer := self._owners.get(request)) is not None:
            answer.requests[request].discard(choice)
            if not any(answer.requests.values()):
                self._close(answer, "ended", "", now)

    def failed(self, request: RequestId, reason: str, now: float) -> None:
        if (answer := self._owners.get(request)) is not None:
            self._close(answer, "failed", reason, now)

    def ended(self, answer: str, now: float) -> None:
        """Nobody waits for it any more; if it is not over, its client has left."""
        if (known := self._answers.get(answer)) is not None and known.open:
            self._close(known, "left", "", now)

    def _close(self, answer: _Answer, state: str, reason: str, now: float) -> None:
        answer.state, answer.reason, answer.ended = state, reason, now
        for request in answer.requests:
            if self._owners.get(request) is answer:
                del self._owners[request]
        if self.listener is not None and answer.trace is not None:
            self.listener.ended(answer.id, answer.trace)

    def route(self, epoch: int, nodes: Sequence[str]) -> None:
        """The names of the nodes of an epoch's stages."""
        self._nodes[epoch] = [*nodes]
        for old in [*self._nodes][:-RECOVERIES]:
            del self._nodes[old]

    def interrupted(self, recovery: Recovery) -> None:
        """It is over."""
        self._recovered += 1
        self._recoveries.append((self._recovered, recovery))
        waited = [
            a
            for a in self._answers.values()
            if a.pipeline == recovery.pipeline and a.began < recovery.ended and (a.open or a.ended > recovery.began)
        ]
        for answer in waited:
            answer.kept[self._recovered] = answer.generated
        traces = [answer.trace for answer in waited if answer.open and answer.trace is not None]
        if self.listener is not None and traces:
            self.listener.interrupted(self._recovery(recovery, 0), traces)

    # Who asks

    def requests(self, owner: str | None = None) -> list[RequestView]:
        """The latest first. owner: the id of a key, which is also their `key`; None: everybody's."""
        found = [answer for answer in self._answers.values() if owner is None or answer.owner == owner]
        return [self._view(answer) for answer in reversed(found)]

    def timeline(self, answer: str, owner: str | None = None, after: int = 0) -> Timeline | None:
        """Steps from number `after` on, as `next` of an earlier one gave it. None: the answer is not known, or not that owner's."""
        known = self._answers.get(answer)
        if known is None or (owner is not None and known.owner != owner):
            return None
        steps = [*self._steps_of(known, after)]
        recoveries = [self._recovery(one, known.kept[number]) for number, one in self._recoveries if number in known.kept]
        epochs = {epoch: nodes for epoch, nodes in self._nodes.items() if any(step.epoch == epoch for step in steps)}
        lost = max(self._count - len(self._steps) - max(known.first_step, after), 0)
        return Timeline(self._view(known), epochs, steps, recoveries, self._count, lost)

    def _kept(self, first: int) -> Iterator[StepRecord]:
        """Backwards from the newest, turned round: a deque is slow in its middle."""
        count = min(max(self._count - first, 0), len(self._steps))
        found: list[StepRecord] = []
        for record in reversed(self._steps):
            if len(found) == count:
                break
            found.append(record)
        return reversed(found)

    def _steps_of(self, answer: _Answer, after: int) -> Iterator[StepSpan]:
        for timing, hops in self._kept(max(answer.first_step, after)):
            parts = [part for part in timing.parts if part.request in answer.requests]
            if parts:
                began = timing.sent - timing.send - timing.encode - timing.schedule
                stages = [
                    HopSpan(hop, trace.wait, trace.prepare, trace.compute, trace.sample, trace.encode)
                    for hop, trace in zip(hops, timing.traces, strict=False)
                ]
                yield StepSpan(
                    timing.number,
                    timing.epoch,
                    self._wall + began,
                    timing.rows,
                    sum(part.rows for part in parts),
                    sum(part.tokens for part in parts),
                    timing.schedule,
                    timing.encode,
                    timing.send,
                    stages,
                    hops[-1],
                    timing.apply,
                )

    def _recovery(self, one: Recovery, kept: int) -> RecoverySpan:
        return RecoverySpan(
            self._wall + one.began,
            self._wall + one.ended,
            one.reason,
            one.node,
            one.silence,
            one.parts,
            one.refilled,
            kept,
        )

    def _view(self, answer: _Answer) -> RequestView:
        span = answer.latest - answer.first
        return RequestView(
            answer.id,
            self._wall + answer.began,
            answer.owner,
            answer.state,
            answer.prompt,
            answer.cached,
            answer.generated,
            self._wall + answer.first if answer.first else 0.0,
            self._wall + answer.ended if answer.ended else 0.0,
            (answer.generated - 1) / span if answer.generated > 1 and span > 0 else 0.0,
            answer.reason,
        )


def _trace(requests: Sequence[Request]) -> TraceContext | None:
    """The span that they belong to; None: they are not traced."""
    trace = requests[0].trace if requests else None
    return trace if trace is not None and trace.sampled else None
