"""How long a step takes and how long it makes a running stream wait: estimated from the nodes' own measurements, corrected by every step.

A stage's seconds are a sum of terms: per step (reading the weights), per row (the products), per row and token of its context (the
attention), per row whose logits are computed, and where experts are streamed, for the share of them that the rows choose. So the model knows, before it runs, that a chunk late in a long context costs many
times an early one.

A step that took r times the predicted time multiplies each term by a power of r. One half of that power is the same for all terms:
usually the whole machine has become slower or faster. The other half grows with the term's share of the prediction (normalised
exponentiated gradient; Kivinen and Warmuth, 1997). No term becomes negative. The prediction for similar steps moves part of the way, in
logarithms, to the measured time: half the way to a longer time and a fifth to a shorter one. A step that is too long keeps somebody
waiting; one that is too short costs little.

Steps that all have the same size do not show how much of their time is fixed. If the fixed time were attributed to the rows, steps would
become smaller and smaller. So one step in 8 has another size (`odd`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shoal.scheduler.plan import Chunk, StageTrace

_SLOWER, _FASTER = 0.5, 0.2
_NOTHING = 1e-6  # seconds
_FARTHEST = 16.0  # most that one step may be off, as a factor; a larger factor counts as this
_LATEST = 16  # steps
_ODD = 8  # one in this many steps that hold chunks
_RANGE = 1e4  # most that a term may differ from its first estimate, as a factor


@dataclass(frozen=True)
class StepLoad:
    """The parts of a step that take time."""

    rows: int = 0
    context: int = 0
    """Tokens that the rows attend to, summed over the rows."""
    logits: int = 0
    """Rows whose logits are computed."""

    def __add__(self, other: StepLoad) -> StepLoad:
        return StepLoad(self.rows + other.rows, self.context + other.context, self.logits + other.logits)

    @classmethod
    def of(cls, position: int, rows: int, logits: int) -> StepLoad:
        """position: position of the first row."""
        return cls(rows, rows * position + rows * (rows + 1) // 2, logits)

    @classmethod
    def of_chunk(cls, chunk: Chunk) -> StepLoad:
        logits = chunk.sample + chunk.drafts + (len(chunk.asked.followers) if chunk.asked is not None else 0)
        return cls.of(chunk.position, len(chunk.tokens), logits)


_TRIED = StepLoad(4, 4 * 2048)
"""A load that a step may have even if nothing like it was measured."""


@dataclass(frozen=True)
class StreamedExperts:
    """Experts of a stage that are read when rows choose them."""

    seconds: float
    """For all that are not in memory."""
    chosen: float
    """The share of its layer's experts that a row chooses."""

    def touched(self, rows: int) -> float:
        """The share that so many rows choose, together."""
        return 1 - (1 - self.chosen) ** rows


@dataclass(frozen=True)
class StageCost:
    """Seconds of one stage, as estimated before anything ran. No term is negative."""

    step: float
    row: float
    context: float
    """Per row and token that it attends to."""
    logits: float
    experts: StreamedExperts | None = None


class Learned:
    """The seconds of one stage, or of the links between stages, as corrected by steps."""

    def __init__(self, guess: StageCost) -> None:
        self._experts = guess.experts
        self._guess = (max(guess.step, _NOTHING), guess.row, guess.context, guess.logits, guess.experts.seconds if guess.experts else 0.0)
        self._terms = list(self._guess)
        self._measured = False

    def seconds(self, load: StepLoad) -> float:
        return sum(term * amount for term, amount in zip(self._terms, self._amounts(load), strict=True))

    @property
    def streams(self) -> bool:
        return self._experts is not None

    @property
    def context_share(self) -> float:
        """What a token of its context adds to a row, as a share of the row."""
        _, row, context, logits, _ = self._terms
        return context / max(row + logits, _NOTHING)

    def _amounts(self, load: StepLoad) -> tuple[float, ...]:
        return 1, load.rows, load.context, load.logits, self._experts.touched(load.rows) if self._experts else 0.0

    def learn(self, load: StepLoad, seconds: float) -> None:
        parts = [term * amount for term, amount in zip(self._terms, self._amounts(load), strict=True)]
        predicted = sum(parts)
        ratio = min(max(seconds / predicted, 1 / _FARTHEST), _FARTHEST)
        shares = [part / predicted for part in parts]
        gain = (_SLOWER if ratio > 1 else _FASTER) if self._measured else 1.0  # the first step says more than any estimate
        squares = sum(share * share for share in shares)
        for i, (share, guess) in enumerate(zip(shares, self._guess, strict=True)):
            power = gain * (1 + share / squares) / 2
            self._terms[i] = min(max(self._terms[i] * ratio**power, guess / _RANGE), guess * _RANGE)
        self._measured = True


class StepCost:
    """The step cost of one route."""

    def __init__(self, stages: Sequence[StageCost], ways: StageCost) -> None:
        """ways: what a step spends between the stages and the head, all links together; its context and logits terms are not used."""
        self._stages = [Learned(stage) for stage in stages]
        self._ways = Learned(ways)
        self._latest: deque[StepLoad] = deque(maxlen=_LATEST)
        self._alike = 0  # steps with chunks since the last odd one

    def wait(self, load: StepLoad, flights: int = 0) -> float:
        """Seconds from one token of a stream to its next if all steps are like this one.

        Of the steps in flight, the slowest stage finishes one at a time; a step cannot be faster than its own path.
        flights: steps in flight; 0: one more than there are stages.
        """
        seconds = [stage.seconds(load) for stage in self._stages]
        return max((flights or len(seconds) + 1) * max(seconds), sum(seconds) + self._ways.seconds(StepLoad(load.rows)))

    @property
    def context_share(self) -> float:
        """What a token of its context adds to a row, as a share of the row, at the stage where it adds most."""
        return max(stage.context_share for stage in self._stages)

    def one_pass(self, rows: int) -> float:
        """Seconds that a stream waits for a prompt's chunk of so many rows, which reads all streamed experts once; 0 if nothing streams.
        Smaller chunks would read nearly as much, each of them."""
        return self.wait(StepLoad.of(0, rows, 1)) if any(stage.streams for stage in self._stages) else 0.0

    def room(self, flying: Iterable[StepLoad]) -> StepLoad:
        """The largest load for which the next step's prediction can be trusted: twice the largest of the latest loads with chunks, or
        about as much as that one while a larger step is in flight. So if a term is far off because no recent step depended on it, only
        one step suffers."""
        rows = max((load.rows for load in self._latest), default=0)
        context = max((load.context for load in self._latest), default=0)
        near = context + max(context // 8, _TRIED.context)  # contexts grow with every step, even if steps do not
        if any(load.rows > max(rows, _TRIED.rows) or load.context > near for load in flying):
            return StepLoad(max(rows, _TRIED.rows), near)
        return StepLoad(max(2 * rows, _TRIED.rows), max(2 * context, near))

    def odd(self) -> bool:
        """Whether this step should have another size than those before it. One in 8 should."""
        if self._alike < _ODD:
            return False
        self._alike = 0
        return True

    def fitting(self, load: StepLoad, position: int, rows: int, scored: bool, wait: float, room: StepLoad | None = None) -> int:
        """How many of a chunk's rows can join a step, so that it is no larger than `room` and a stream waits no longer than `wait`
        seconds.

        scored: whether the logits of each row are computed.
        """
        room = room or StepLoad(load.rows + rows, 2**62)
        least, most = 0, min(rows, max(room.rows - load.rows, 0))
        while least < most:
            middle = (least + most + 1) // 2
            joined = load + StepLoad.of(position, middle, middle if scored else 0)
            if joined.context <= room.context and self.wait(joined) <= wait:
                least = middle
            else:
                most = middle - 1
        return least

    def learn(self, load: StepLoad, traces: Sequence[StageTrace], flight: float = 0.0, chunks: bool = True) -> None:
        """Learns from a step that has come back. flight: seconds from sending it to its result; 0: not known. chunks: whether it held
        more than samples."""
        if len(traces) != len(self._stages) or not load.rows:
            return
        if chunks:
            self._latest.append(load)
            self._alike += 1
        inside = 0.0
        for stage, trace in zip(self._stages, traces, strict=True):
            busy = trace.prepare + trace.compute + trace.sample + trace.encode
            inside += busy + trace.wait
            if busy > 0:
                stage.learn(load, busy)
        if flight > inside:
            self._ways.learn(StepLoad(load.rows), flight - inside)
