"""How long a step takes, and how long it makes a running stream wait: a guess from what nodes measured of themselves, corrected by every step.

A stage's seconds are a sum of four terms: per step (reading the weights), per row (the products), per row and token of its context (the
attention), and per row whose logits are computed. So a chunk late in a long context is known to cost many times an early one before it runs.

A step that took r times what was predicted multiplies each term by a power of r. One half of that power is the same for all terms: mostly
it is the machine that has become slower or faster. The other half is larger the larger the term's part in the prediction was (normalised
exponentiated gradient; Kivinen and Warmuth, 1997). None becomes negative, and the prediction for steps like it goes part of the way, in
logarithms, to what was measured. Half the way to a longer time and a fifth to a shorter one: a step that is too long keeps somebody waiting,
one that is too short costs little.

Steps of one size do not tell what of their time is fixed, and whoever takes that for the rows' makes them smaller and smaller. So one in 8 is
of another size (`odd`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shoal.scheduler.plan import Chunk, StageTrace

_SLOWER, _FASTER = 0.5, 0.2
_NOTHING = 1e-6  # seconds
_FARTHEST = 16.0  # times that one step may be off; more is taken for so much
_LATEST = 16  # steps
_ODD = 8  # one in so many steps that bring chunks
_RANGE = 1e4  # times that a term may come to differ from the guess


@dataclass(frozen=True)
class StepLoad:
    """What of a step takes time."""

    rows: int = 0
    context: int = 0
    """Tokens that the rows attend to, summed over the rows."""
    logits: int = 0
    """Rows whose logits are computed."""

    def __add__(self, other: StepLoad) -> StepLoad:
        return StepLoad(self.rows + other.rows, self.context + other.context, self.logits + other.logits)

    @classmethod
    def of(cls, position: int, rows: int, logits: int) -> StepLoad:
        """position: of the first row."""
        return cls(rows, rows * position + rows * (rows + 1) // 2, logits)

    @classmethod
    def of_chunk(cls, chunk: Chunk) -> StepLoad:
        logits = chunk.sample + (len(chunk.asked.followers) if chunk.asked is not None else 0)
        return cls.of(chunk.position, len(chunk.tokens), logits)


_TRIED = StepLoad(4, 4 * 2048)
"""What a step may hold though nothing like it was measured."""


@dataclass(frozen=True)
class StageCost:
    """Seconds of one stage, as they are guessed before anything ran. None is negative."""

    step: float
    row: float
    context: float
    """Per row and token that it attends to."""
    logits: float


class Learned:
    """The seconds of one stage, or of the ways between them, as steps have corrected them."""

    def __init__(self, guess: StageCost) -> None:
        self._guess = (max(guess.step, _NOTHING), guess.row, guess.context, guess.logits)
        self._terms = list(self._guess)
        self._measured = False

    def seconds(self, load: StepLoad) -> float:
        step, row, context, logits = self._terms
        return step + row * load.rows + context * load.context + logits * load.logits

    def learn(self, load: StepLoad, seconds: float) -> None:
        parts = [term * amount for term, amount in zip(self._terms, (1, load.rows, load.context, load.logits), strict=True)]
        predicted = sum(parts)
        ratio = min(max(seconds / predicted, 1 / _FARTHEST), _FARTHEST)
        shares = [part / predicted for part in parts]
        gain = (_SLOWER if ratio > 1 else _FASTER) if self._measured else 1.0  # the first step says more than any guess
        squares = sum(share * share for share in shares)
        for i, (share, guess) in enumerate(zip(shares, self._guess, strict=True)):
            power = gain * (1 + share / squares) / 2
            self._terms[i] = min(max(self._terms[i] * ratio**power, guess / _RANGE), guess * _RANGE)
        self._measured = True


class StepCost:
    """Of one route."""

    def __init__(self, stages: Sequence[StageCost], ways: StageCost) -> None:
        """ways: what a step spends between the stages and the head, all ways together; its context and logits count for nothing."""
        self._stages = [Learned(stage) for stage in stages]
        self._ways = Learned(ways)
        self._latest: deque[StepLoad] = deque(maxlen=_LATEST)
        self._alike = 0  # steps with chunks since the last one that was odd

    def wait(self, load: StepLoad) -> float:
        """Seconds from one token of a stream to its next, where all steps are like this one.

        S stages have S + 1 steps in flight, and the slowest stage ends one of them at a time; a step cannot be faster than its own way.
        """
        seconds = [stage.seconds(load) for stage in self._stages]
        return max((len(seconds) + 1) * max(seconds), sum(seconds) + self._ways.seconds(StepLoad(load.rows)))

    def room(self, flying: Iterable[StepLoad]) -> StepLoad:
        """What the next step may hold, so that its prediction is to be trusted: twice as much as the largest of the latest that brought chunks, and about
        as much as that one while a larger one is in flight. So where a term is far off, because no step has depended on it lately, one step suffers.
        """
        rows = max((load.rows for load in self._latest), default=0)
        context = max((load.context for load in self._latest), default=0)
        near = context + max(context // 8, _TRIED.context)  # contexts grow with every step, also where steps do not
        if any(load.rows > max(rows, _TRIED.rows) or load.context > near for load in flying):
            return StepLoad(max(rows, _TRIED.rows), near)
        return StepLoad(max(2 * rows, _TRIED.rows), max(2 * context, near))

    def odd(self) -> bool:
        """Whether the step that is made now is to be of another size than those before it. So is one in 8."""
        if self._alike < _ODD:
            return False
        self._alike = 0
        return True

    def fitting(self, load: StepLoad, position: int, rows: int, scored: bool, wait: float, room: StepLoad | None = None) -> int:
        """How many of a chunk's rows can join a step, so that it is no larger than `room` and a stream waits no longer than `wait` seconds.

        scored: logits of each row are computed.
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
        """A step has come back. flight: seconds from its sending to its result; 0: not known. chunks: it held more than samples."""
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
