"""One choice of one request, as the scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.request import BlockId, Request, SequenceId
from shoal.scheduler.blocks import Digest


@dataclass(eq=False)
class Sequence:
    id: SequenceId
    request: Request
    choice: int
    parent: Sequence | None
    """The first choice of the same request, whose prompt the others fork from."""
    tokens: list[int]
    """Prompt and answer so far."""
    table: list[BlockId] = field(default_factory=list[BlockId])
    told: int = 0
    """Blocks of the table that the stages know."""
    scheduled: int = 0
    """Tokens sent into the pipeline."""
    computed: int = 0
    """Tokens whose keys and values are known to be there."""
    digests: list[Digest] = field(default_factory=list[Digest])
    """Names of the full blocks of `tokens`, as far as they were needed."""
    named: int = 0
    """Blocks of the table that can be found by their tokens."""
    awaiting: bool = False
    """A draw is on its way; the next token is not known."""
    undrawn: bool = False
    """All known tokens are computed, and the draw that was due was put off: the last one runs once more."""
    opened: bool = False
    """The last stage has its sampling state."""
    life: int = 0
    """Grows with each preemption: what an earlier life computed is gone."""
    forking: bool = False
    """Its first block is a copy that no result has confirmed yet."""
    last_step: int = -1
    cached: int = 0
    done: bool = False

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def pending(self) -> int:
        """Known tokens that are not in the pipeline yet."""
        return len(self.tokens) - self.scheduled

    @property
    def decoding(self) -> bool:
        return self.undrawn or (self.pending == 1 and self.generated > 0)
