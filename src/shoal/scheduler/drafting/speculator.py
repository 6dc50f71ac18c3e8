"""Decides which drafts a step verifies. A wrong one costs time and nothing else: what is sampled does not depend on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoal.scheduler.cost import StepCost, StepLoad
from shoal.scheduler.drafting.draft import Drafter
from shoal.scheduler.drafting.drafting import Drafting
from shoal.scheduler.drafting.prompt_lookup import PromptLookup
from shoal.scheduler.sequence import Sequence
from shoal.scheduler.slots import Slots


@dataclass(frozen=True)
class SpeculatedStep:
    """A step that would do without drafts."""

    samples: int
    """Tokens that it samples."""
    flights: int
    """Steps that share the stages with it, itself included."""
    cost: StepCost | None


class Speculator:
    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.drafter: Callable[[Sequence], Drafter] = lambda sequence: PromptLookup()
        """Makes what guesses for a sequence."""

    def wanted(self) -> bool:
        """Whether the next step may have drafts: no prompt waits for its rows."""
        return self._slots.limits.drafts > 0 and all(s.awaiting or s.decoding for s in self._slots.running)

    def step(self, samples: int, cost: StepCost | None) -> SpeculatedStep:
        streams = sum(sequence.active for sequence in self._slots.running)
        return SpeculatedStep(samples, min(self._slots.limits.depth + 1, -(-streams // samples)), cost)

    def drafts(self, sequence: Sequence, step: SpeculatedStep, load: StepLoad, rows: int) -> list[int]:
        """What may follow a sequence's last token, as far as it pays and finds blocks, which it gets. load: of the step so far. rows: how many
        more it may have."""
        limits, request = self._slots.limits, sequence.request
        sequence.drafting = drafting = sequence.drafting or Drafting(self.drafter(sequence))
        draft = drafting.propose(sequence.tokens, limits.drafts)
        end = next((i for i, token in enumerate(draft.tokens) if token in request.stop_tokens), len(draft.tokens))

        def seconds(count: int) -> float:
            more = StepLoad.of(len(sequence.tokens), count, count)
            return 1.0 if step.cost is None else step.cost.wait(load + more, step.flights)

        length = drafting.length(draft, min(end, rows, request.max_tokens - sequence.generated - 1), step.samples, seconds)
        return draft.tokens[: self._slots.spare(sequence, length)] if length else []
