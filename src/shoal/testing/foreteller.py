"""Drafts that are often right: the toy's answers do not repeat themselves, so nothing in them can be looked up."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from shoal.node.pipeline_runner import PipelineRunner
from shoal.pipeline.driver import Driver
from shoal.request import RequestId
from shoal.scheduler.drafting.draft import Draft
from shoal.scheduler.scheduler import Scheduler
from shoal.scheduler.sequence import Sequence as ScheduledSequence
from shoal.testing import toy

_WITH_DRAFTS = 0.4  # of the seeds


class Foreteller:
    """Knows what choices will say."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._wrong = chance.choice((0.02, 0.2))
        self.answers: dict[RequestId, list[list[int]]] = {}
        self._schedulers: list[Scheduler] = []

    def attach(self, runner: PipelineRunner) -> None:
        """Call it before the runner's first route."""
        requests = runner.requests
        made = requests._made  # pyright: ignore[reportPrivateUsage]

        def make(scheduler: Scheduler) -> Driver:
            scheduler.speculator.drafter = self.drafter
            self._schedulers.append(scheduler)
            return made(scheduler)

        requests._made = make  # pyright: ignore[reportPrivateUsage]

    @property
    def counts(self) -> tuple[int, int]:
        """Drafts that steps verified, and those of them that were right."""
        counters = [scheduler.counters for scheduler in self._schedulers]
        return sum(c.drafted_tokens for c in counters), sum(c.accepted_tokens for c in counters)

    def drafter(self, sequence: ScheduledSequence) -> _Foretold:
        said = self.answers.get(sequence.request.id)
        return _Foretold(said[sequence.choice] if said is not None else [], sequence.prompt_length, self._chance, self._wrong)


class _Foretold:
    def __init__(self, answer: list[int], begin: int, chance: Random, wrong: float) -> None:
        self._answer, self._begin, self._chance, self._wrong = answer, begin, chance, wrong

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        at, chance = len(tokens) - self._begin, self._chance
        coming = self._answer[at : at + chance.randint(0, most)]
        return Draft([chance.randrange(toy.VOCABULARY) if chance.random() < self._wrong else token for token in coming], 8)


def foreteller_of(seed: int) -> Foreteller | None:
    """None: without drafts."""
    chance = Random(f"drafts {seed}")
    return Foreteller(chance) if chance.random() < _WITH_DRAFTS else None
