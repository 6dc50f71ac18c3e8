"""The scheduler's limits and counters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Batching:
    """Sequences wait until there are `size` of them, or the first has waited `delay` seconds; then all are admitted. delay 0: each at once."""

    size: int
    delay: float


ALONE = Batching(1, 0.0)


@dataclass(frozen=True)
class Limits:
    blocks: int
    block_tokens: int
    context: int
    """Most tokens of one sequence."""
    slots: int
    """Most sequences that run at once."""
    step_tokens: int
    queue: int
    depth: int = 1
    """Steps that the driver keeps in flight: samples are spread over this many steps, and prompts cut into this many smaller chunks."""
    ageing: int = 256
    """Steps that a class may wait while none of its sequences run; then the first in line rises a class."""
    wait: float = 0.0
    """Most seconds, about, that a running stream waits for others' prompts; 0: no limit other than `step_tokens`."""
    prefixes: bool = True
    """Whether computed blocks can be found by their tokens."""
    batching: Batching = ALONE
    drafts: int = 0
    """Most tokens of a sequence that are guessed and verified in a step; 0: none are."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that can ever run."""
        return min(self.context, self.blocks * self.block_tokens)

    @property
    def chunk(self) -> int:
        """Most tokens of a prompt in one step."""
        return max(min(self.step_tokens, 2 * self.block_tokens), self.step_tokens // self.depth // self.block_tokens * self.block_tokens)


@dataclass
class Counters:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    degraded_tokens: int = 0
    """Computed without an expert, of prompts and of answers."""
    drafted_tokens: int = 0
    """Guesses at what would be sampled that steps verified."""
    accepted_tokens: int = 0
    """Of these, those that were right."""
    preemptions: int = 0
    steps: int = 0
